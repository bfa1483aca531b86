"""Ops of fastgan, one file each: reference, kernel, derivative, public op. Imported as `fastgan.kernels`."""
