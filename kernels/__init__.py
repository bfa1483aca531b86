"""Ops of fastgan, one file each: reference, kernel, autograd function, public op. Imported as `fastgan.kernels`."""
