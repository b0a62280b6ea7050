"""Installed by colcon; flss_runtime itself comes from pip."""

from setuptools import setup

NAME = "flss_edge_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/flss_edge.launch.py"]),
        (f"share/{NAME}/config", ["config/params.yaml", "config/fast_dds_images.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="flss-edge developers",
    maintainer_email="flss-edge@users.noreply.github.com",
    description="A lifecycle node that classifies camera images or declines to, with flss_runtime.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"flss_edge_node = {NAME}.main:main"]},
)
