"""How a run does, measured on a few images aside from the steps: what `fastgan doctor` judges by.

Every figure is a function of the weights, the data set and the images seen: the same on every number of processes and
after every resume. All processes compute it, as whole weights may need all of them. "Training images" are the first
that training sees, the same in every row: they are decoded once, and no process needs another's part of a batch.

When there is a row depends on the speed, unless `health_every` says: what rows cost is measured, and the next one waits
until all of them have taken less than a hundredth of the session's time. So rows stand in performance.jsonl.

health/d_accuracy_real        share of training images that D takes for real: relativistic and wasserstein logits mean
health/d_accuracy_fake        nothing by themselves, so there it is the share of pairs in which the real has the higher
health/d_accuracy_ema         of G's images that D takes for fakes, and of those of G's average
health/d_accuracy_held_out    of images that training never sees and D takes for real, where there are any
health/logit_gap              mean logit of the training images less that of G's
health/d_accuracy_pairs       share of all pairs of a training image and one of G's in which the first's logit is higher
health/held_out_gap           how much more often a training image has a higher logit than a held-out one than the
                              other way round: 0 is none, 1 is memorised
health/moved_gap              the same of the training images and their copies moved by a pixel, which D hasn't seen
                              either: it stands in where nothing is held out, and agrees with it to a tenth
health/slope_real, slope_fake root mean square of D's gradient in training images and in G's: what R1 and R2 hold down
health/label_real, label_fake share of pairs of training images, or of G's, whose logits fall where D is told each
                              other's class instead of their own; 0.5: the classes say nothing of the images
health/diversity              mean distance of two samples, as a share of that of two training images: 0 is collapse
health/nearest_real           mean distance of a sample to the nearest training image, as a share of that of an image
                              that isn't among them: 0 is memorisation, far above 1 is nothing like the data
health/saturation             share of the samples' values beyond +-0.999, where tanh has no gradient left
health/saturation_real        of the training images' values
health/data_spread            root mean square of the difference of two training images, a value: 0 where all are alike
health/passes                 how often each training image was seen
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.data.images import ImageDataset, to_unit_range
from fastgan.data.named import open_named
from fastgan.data.names import NAMES
from fastgan.data.sampler import Sampler
from fastgan.evaluation.fidelity import latents
from fastgan.networks.layers import has_batch_norm
from fastgan.training.losses import LOSSES
from fastgan.training.trainer import Trainer
from fastgan.utils.memory import InParts

EVERY = 10_000  # images between two measurements at the least, where `health_every` doesn't say
EARLY_EVERY, EARLY = 2_000, 20_000  # and those up to which more is worth more: a fault is best seen at once
SHARE = 0.01  # of a session's time that rows may have taken when the next is due
NUM_IMAGES = 64  # of each kind
NUM_NEIGHBORS = 1_000  # training images among which the nearest is looked for: a set that can be memorised is small
COMPARED_SIDE = 32  # distances are of images shrunk to about this: the grain of large ones says little
SATURATED = 0.999
BOUNDARY = {"nonsaturating": 0.0, "hinge": 0.0, "least-squares": 0.5}  # logits above it mean real
NO_TEST_SPLIT = ("toy",)  # whose test split has images of the train split


@dataclass(frozen=True)
class FixedBatch:
    """The images by which a run is measured, on the device."""

    reals: Tensor  # [B, C, H, W] in [-1, 1]: the first that training saw
    labels: Tensor | None  # [B], or vectors [B, K]
    held_out: Tensor | None  # [B, C, H, W]; None where there are none
    held_out_labels: Tensor | None
    neighbors: Tensor  # [N, F]: training images, shrunk and flat
    ordinary: Tensor  # mean distance to the nearest of `neighbors` of images that aren't among them
    spread: Tensor  # mean distance of two reals
    several_classes: bool  # whether labels differ


class Health:
    """Measures trainers of one config against its data set, of which it reads a part at the first use."""

    def __init__(self, config: Config, dataset: ImageDataset, device: torch.device) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self._fixed: FixedBatch | None = None

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """Measure the trainer as it stands, which stays as it is; all processes must ask. Waits for the device once."""
        if self._fixed is None:
            self._fixed = fixed_images(self.config, self.dataset, self.device)
        with trainer.G.gathered_params(), trainer.D.gathered_params():
            found = self._judge(trainer, self._fixed) | self._look(trainer, self._fixed)
        values = torch.stack([value.double() for value in found.values()]).tolist()
        row = {f"health/{name}": value for name, value in zip(found, values, strict=True)}
        return row | {"health/passes": trainer.images_seen / trainer.loader.num_images}

    def _judge(self, trainer: Trainer, fixed: FixedBatch) -> dict[str, Tensor]:
        """What D makes of reals, fakes and held-out images."""
        untouched = _untouched(trainer.D.net)
        judge, slopes = _in_parts(untouched, trainer, trainer.D.net), _slopes(untouched)
        judge_slopes = _in_parts(slopes, trainer, trainer.D.net)
        reals, labels = fixed.reals, fixed.labels
        first = trainer.images_seen  # seed
        fakes = self._samples(trainer, trainer.G.net, len(reals), labels, first)
        (real, real_slope), (fake, fake_slope) = (judge_slopes(x, labels).unbind(1) for x in (reals, fakes))
        loss = self.config.objective.loss
        with torch.no_grad():
            average = judge(self._samples(trainer, trainer.ema.net, len(reals), labels, first), labels)
            found = accuracies(loss, real, fake, average)
            found |= {"d_accuracy_pairs": pairs_above(real, fake), "logit_gap": real.mean() - fake.mean()}
            found |= {"slope_real": real_slope.mean().sqrt(), "slope_fake": fake_slope.mean().sqrt()}
            found["moved_gap"] = 2 * pairs_above(real, judge(moved(reals), labels)) - 1
            if fixed.held_out is not None:
                held_out = judge(fixed.held_out, fixed.held_out_labels)
                found["d_accuracy_held_out"] = real_accuracy(loss, held_out, fake)
                found["held_out_gap"] = 2 * pairs_above(real, held_out) - 1
            if labels is not None and fixed.several_classes:
                found["label_real"] = label_use(judge, reals, labels, real)
                found["label_fake"] = label_use(judge, fakes, labels, fake)
        return found

    @torch.no_grad()
    def _look(self, trainer: Trainer, fixed: FixedBatch) -> dict[str, Tensor]:
        """What the samples are like, beside the training images."""
        samples = self._samples(trainer, trainer.ema.net, len(fixed.reals), fixed.labels)
        small = shrunk(samples)
        return {
            "diversity": ratio(pairwise(small), fixed.spread),
            "nearest_real": ratio(nearest(small, fixed.neighbors).mean(), fixed.ordinary),
            "saturation": saturation(samples),
            "saturation_real": saturation(fixed.reals),
            "data_spread": fixed.spread / small.shape[1] ** 0.5,
        }

    @torch.no_grad()
    def _samples(
        self, trainer: Trainer, G: nn.Module, count: int, labels: Tensor | None, first_seed: int = 0
    ) -> Tensor:
        """G's images of so many seeds from the first on, of the classes `labels` [B] where it is told any."""
        z = latents(torch.arange(first_seed, first_seed + count, device=self.device), self.config.networks.z_dim)
        return _in_parts(_untouched(G), trainer, G)(z, labels)


Network = Callable[[Tensor, Tensor | None], Tensor]


def _untouched(net: nn.Module) -> Network:
    """The network as it is in training, whose running statistics stay as they are."""

    def call(x: Tensor, labels: Tensor | None) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        given = (x,) if labels is None else (x, labels)
        out: Tensor = torch.func.functional_call(net, buffers, given)
        return out

    return call


def _in_parts(call: Network, trainer: Trainer, net: nn.Module) -> Network:
    """The call of as many images at a time as training gives the network, as more may not fit; coupled ones at once."""
    size = min(NUM_IMAGES, trainer.micro_batch_size or trainer.max_local_batch_size)
    return call if net.training and has_batch_norm(net) else InParts(call, size)


def _slopes(judge: Network) -> Network:
    """Logits and the squared norms of their gradients in the images: [B, 2]."""

    def call(images: Tensor, labels: Tensor | None) -> Tensor:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = judge(images, labels)
            (slopes,) = torch.autograd.grad(logits.sum(), images)
        return torch.stack([logits.detach(), slopes.flatten(1).square().sum(1)], dim=1)

    return call


def accuracies(loss: str, real: Tensor, fake: Tensor, average: Tensor) -> dict[str, Tensor]:
    """Return how often D is right on reals, on G's images, and on its average's, by the logits [B] of each."""
    if loss not in BOUNDARY:
        pairs = real_accuracy(loss, real, fake)
        ema = real_accuracy(loss, real, average)
        return {"d_accuracy_real": pairs, "d_accuracy_fake": pairs, "d_accuracy_ema": ema}
    return {
        "d_accuracy_real": real_accuracy(loss, real, fake),
        "d_accuracy_fake": (fake <= BOUNDARY[loss]).double().mean(),
        "d_accuracy_ema": (average <= BOUNDARY[loss]).double().mean(),
    }


def real_accuracy(loss: str, logits: Tensor, fake: Tensor) -> Tensor:
    """Return the share of logits [B] that mean real; of the pairs with fakes, where they mean nothing by themselves."""
    assert loss in LOSSES
    if loss in BOUNDARY:
        return (logits > BOUNDARY[loss]).double().mean()
    return pairs_above(logits, fake)


def pairs_above(logits: Tensor, others: Tensor) -> Tensor:
    """Return the share of all pairs, [B] and [N], in which the first is higher; those that are equal count half."""
    return ((logits[:, None] - others).sign().double().mean() + 1) / 2


def label_use(judge: Network, images: Tensor, labels: Tensor, own: Tensor) -> Tensor:
    """Return the share of pairs of images of different classes that fit their classes better than each other's.

    That is by the sum of both logits, so that it doesn't count which classes D holds for more real than others. `own`
    [B] are the logits of the images with their classes.
    """
    kinds = labels if labels.ndim == 1 else labels.unique(dim=0, return_inverse=True)[1]  # equal vectors are one
    order = kinds.argsort(stable=True)
    first, second = order[: len(order) // 2], order[len(order) // 2 :][: len(order) // 2]
    swapped = labels.clone()
    swapped[first], swapped[second] = labels[second], labels[first]
    gain = own - judge(images, swapped)
    differ = kinds[first] != kinds[second]
    signs = (gain[first] + gain[second]).sign().double() * differ  # the device isn't asked which, only how many
    return (signs.sum() / differ.sum() + 1) / 2


def moved(images: Tensor) -> Tensor:
    """Return the images one pixel further down and to the right, their edges repeated."""
    return F.pad(images, (1, 0, 1, 0), mode="replicate")[:, :, :-1, :-1]


def shrunk(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] with sides of at most about 32, flat: [B, F], float32."""
    factor = max(1, min(images.shape[2:]) // COMPARED_SIDE)
    return F.avg_pool2d(images.float(), factor).flatten(1)


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return the part as a share of the whole; 0 where that is 0."""
    return torch.where(whole > 0, part / whole, 0.0)


def pairwise(images: Tensor) -> Tensor:
    """Return the mean distance of two different images of [B, F]; 0 of one."""
    return torch.pdist(images.double()).mean() if len(images) > 1 else images.new_zeros(())


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """Return the distance of each image to the nearest of the others: [B, F], [N, F] -> [B]."""
    return torch.cdist(images, others).min(1).values


def saturation(images: Tensor) -> Tensor:
    """Return the share of values at the ends of tanh."""
    return (images.abs() > SATURATED).double().mean()


def held_out_source(config: Config, dataset: ImageDataset) -> ImageDataset | None:
    """Return images like those of training that training never sees.

    None where there are none, as in a user's folder.
    """
    name = config.data.data
    if name not in NAMES or name in NO_TEST_SPLIT:
        return None
    found = open_named(name, "test")
    same = (found.channels, found.image_size) == (dataset.channels, dataset.image_size)
    return found if same else None


def fixed_images(config: Config, dataset: ImageDataset, device: torch.device) -> FixedBatch:
    """Return the first images that training saw, as many held-out ones, and what their distances are."""
    seen = Sampler(len(dataset), config.seed).dataset_indices(range(min(len(dataset), NUM_NEIGHBORS)))
    pixels = dataset.pixels(seen).to(device)
    conditional = config.networks.is_conditional
    reals, neighbors = to_unit_range(pixels[:NUM_IMAGES]), shrunk(to_unit_range(pixels))
    labels = _labels(dataset, seen[:NUM_IMAGES], device) if conditional else None
    held_out = held_out_labels = None
    among = torch.cdist(neighbors[:NUM_IMAGES], neighbors).fill_diagonal_(torch.inf).min(1).values
    ordinary = among.mean() if len(neighbors) > 1 else among.new_zeros(())
    if (others := held_out_source(config, dataset)) is not None:
        items = Sampler(len(others), config.seed).dataset_indices(range(min(len(others), len(reals))))
        held_out = to_unit_range(others.pixels(items).to(device))
        held_out_labels = _labels(others, items, device) if conditional else None
        ordinary = nearest(shrunk(held_out), neighbors).mean()
    spread, several = pairwise(neighbors[:NUM_IMAGES]), labels is not None and len(labels.unique(dim=0)) > 1
    return FixedBatch(reals, labels, held_out, held_out_labels, neighbors, ordinary, spread, several)


def _labels(dataset: ImageDataset, items: Tensor, device: torch.device) -> Tensor:
    assert dataset.labels is not None
    return dataset.labels[items.to(dataset.labels.device)].to(device)
