"""Networks that others have published, measured on a Pixel 3: Table 3 of the paper."""

from typing import NamedTuple

DEVICE = "Pixel 3"
CLASSES = 1000  # ImageNet


class PublishedNetwork(NamedTuple):
    name: str
    latency_ms: float  # 224x224 input, TFLite
    top_1: float  # on ImageNet, in [0, 1]


# Rows of Table 3 without a latency are left out.
PUBLISHED = (
    PublishedNetwork("MobileNetV1", 89.97, 0.706),
    PublishedNetwork("MobileNetV2", 61.13, 0.720),
    PublishedNetwork("MobileNetV2 ×1.4", 104.65, 0.747),
    PublishedNetwork("NASNet-mobile", 144.05, 0.740),
    PublishedNetwork("MnasNet", 64.24, 0.740),
    PublishedNetwork("DenseNAS-B", 66.62, 0.746),
    PublishedNetwork("ABS", 68.21, 0.744),
    PublishedNetwork("Proxyless-R", 67.66, 0.746),
    PublishedNetwork("FBNet-A", 54.05, 0.730),
    PublishedNetwork("FBNet-B", 63.79, 0.741),
    PublishedNetwork("FBNet-C", 79.18, 0.749),
    PublishedNetwork("Single Path NAS", 68.67, 0.749),
    PublishedNetwork("FairNAS-C", 67.32, 0.747),
    PublishedNetwork("PAD-NAS-S-A", 61.31, 0.746),
    PublishedNetwork("PAD-NAS-S-B", 64.71, 0.749),
    PublishedNetwork("PAD-NAS-S-C", 69.85, 0.752),
    PublishedNetwork("PAD-NAS-L-A", 54.72, 0.745),
    PublishedNetwork("PAD-NAS-L-B", 67.23, 0.752),
    PublishedNetwork("PAD-NAS-L-C", 79.08, 0.757),
    PublishedNetwork("PAD-NAS-L-D", 90.21, 0.759),
    PublishedNetwork("PAD-NAS-L-E", 101.53, 0.761),
)


def comparable(*, device_model: str, classes: int) -> tuple[PublishedNetwork, ...]:
    """Those that latencies on this device and accuracies of this many classes may be compared with."""
    return PUBLISHED if DEVICE.lower() in device_model.lower() and classes == CLASSES else ()
