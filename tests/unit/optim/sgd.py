"""A third optimizer, as a person would add it: this file, and its line in the registry."""

from trainer.config.optimizers import OptimizerEntry, OptimizerSettings
from trainer.config.section import Beta


class SgdSettings(OptimizerSettings):
    sgd_momentum: Beta = 0.9
    """Momentum of SGD."""


def hyperparameters(settings, group):
    decay = 0.0 if group == "vectors" else settings.weight_decay
    return {"algorithm": "sgd", "lr": settings.lr, "momentum": settings.sgd_momentum, "weight_decay": decay}


def build(groups, fused):
    from torch.optim import SGD

    return SGD(groups, fused=fused)


def state_bytes(parameter):
    return parameter.numel() * parameter.element_size()


ENTRY = OptimizerEntry(
    "with momentum", SgdSettings, hyperparameters, build, state_bytes, lambda device_type: {"sgd_kernel": device_type}
)
