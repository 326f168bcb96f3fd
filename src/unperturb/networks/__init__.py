"""Architectures only: plain modules from already normalized images to logits."""

from unperturb.networks.cifar_resnet import CifarResNet
from unperturb.networks.geometry import Geometry
from unperturb.networks.registry import (
    NETWORKS,
    ArchSpec,
    build_network,
    network_names,
    register,
    resolve,
)
from unperturb.networks.resnet import WideStemResNet
from unperturb.networks.robust import RobustCNN, RobustResNet
from unperturb.networks.small_cnn import SmallCNN
from unperturb.networks.squeezenet import SqueezeNet
from unperturb.networks.vgg import CifarVGG
from unperturb.networks.wide_resnet import WideResNet

__all__ = [
    "NETWORKS",
    "ArchSpec",
    "CifarResNet",
    "CifarVGG",
    "Geometry",
    "RobustCNN",
    "RobustResNet",
    "SmallCNN",
    "SqueezeNet",
    "WideResNet",
    "WideStemResNet",
    "build_network",
    "network_names",
    "register",
    "resolve",
]
