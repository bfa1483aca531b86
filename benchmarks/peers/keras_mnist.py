"""The digit GAN as a program of the Keras courses has it: Sequential networks, one `tf.function` step, two tapes.

    python keras_mnist.py IMAGES.npy --threads 2 [--xla]

IMAGES.npy holds the training images, uint8 [N, 28, 28]. Then it serves, see serve.py.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from serve import Arrays, serve

BATCH_SIZE, Z_DIM = 256, 100


def make_generator() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((Z_DIM,)),
            layers.Dense(7 * 7 * 256, use_bias=False, name="dense"),
            layers.BatchNormalization(name="norm_dense"),
            layers.LeakyReLU(),
            layers.Reshape((7, 7, 256)),
            layers.Conv2DTranspose(128, 5, strides=1, padding="same", use_bias=False, name="conv7"),
            layers.BatchNormalization(name="norm7"),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(64, 5, strides=2, padding="same", use_bias=False, name="up14"),
            layers.BatchNormalization(name="norm14"),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(1, 5, strides=2, padding="same", use_bias=False, activation="tanh", name="up28"),
        ]
    )


def make_discriminator() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(64, 5, strides=2, padding="same", name="down14"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Conv2D(128, 5, strides=2, padding="same", name="down7"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(1, name="dense"),
        ]
    )


class KerasPeer:
    """Both networks, their optimizers, the images, and the compiled step."""

    def __init__(self, images: np.ndarray, xla: bool) -> None:
        self.nets = {"G": make_generator(), "D": make_discriminator()}
        self._cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
        self._optimizers = {side: keras.optimizers.Adam(1e-4) for side in self.nets}
        for side, net in self.nets.items():
            self._optimizers[side].build(net.trainable_variables)
        reals = (images[..., None].astype("float32") - 127.5) / 127.5
        data = tf.data.Dataset.from_tensor_slices(reals).shuffle(len(reals)).batch(BATCH_SIZE, drop_remainder=True)
        self._batches = iter(data.repeat().prefetch(1))
        self._train_step = tf.function(self._move, jit_compile=xla)

    def _move(self, reals: tf.Tensor) -> None:
        """Both players move along the gradients of one round."""
        G, D = self.nets["G"], self.nets["D"]
        z = tf.random.normal([BATCH_SIZE, Z_DIM])
        with tf.GradientTape() as g_tape, tf.GradientTape() as d_tape:
            fakes = G(z, training=True)
            on_reals, on_fakes = D(reals, training=True), D(fakes, training=True)
            g_loss = self._cross_entropy(tf.ones_like(on_fakes), on_fakes)
            d_loss = self._cross_entropy(tf.ones_like(on_reals), on_reals)
            d_loss += self._cross_entropy(tf.zeros_like(on_fakes), on_fakes)
        for side, tape, loss in (("G", g_tape, g_loss), ("D", d_tape, d_loss)):
            weights = self.nets[side].trainable_variables
            self._optimizers[side].apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    def step(self) -> None:
        self._train_step(next(self._batches))

    def load(self, weights: Arrays) -> None:
        for side, net in self.nets.items():
            for layer in net.layers:
                layer.set_weights([weights[f"{side}/{layer.name}/{weight.name}"] for weight in layer.weights])

    def images(self, z: np.ndarray, training: bool) -> np.ndarray:
        return self.nets["G"](z, training=training).numpy()[..., 0]

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.nets["D"](images[..., None], training=False).numpy()[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--xla", action="store_true", help="compile the step by XLA")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    peer = KerasPeer(np.load(options.images, allow_pickle=False), options.xla)
    serve(peer, f"TensorFlow {tf.__version__}, Keras {keras.__version__}")


if __name__ == "__main__":
    main()
