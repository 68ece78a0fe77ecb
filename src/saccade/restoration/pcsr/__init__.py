from saccade.registry import register
from saccade.restoration.pcsr.encoders import CARNM, FSRCNN, MSRResNet
from saccade.restoration.pcsr.network import PCSR
from saccade.restoration.pcsr.sampler import Sampler


@register("pcsr_fsrcnn", system="pcsr", task="super-resolution", scales=(2, 3, 4))
def pcsr_fsrcnn(
    scale: float = 4, heavy=(58,) * 4, light=(10,) * 3, classifier=(), width=48, shrink=12, layers=4
) -> PCSR:
    return PCSR(FSRCNN(width, shrink, layers), heavy, light, classifier, scale)


@register("pcsr_small", system="pcsr", task="super-resolution", scales=(2, 3, 4))
def pcsr_small(scale: float = 4, heavy=(32,) * 3, light=(8,) * 2, classifier=(), width=24, shrink=8, layers=2) -> PCSR:
    return PCSR(FSRCNN(width, shrink, layers), heavy, light, classifier, scale)
