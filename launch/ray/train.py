"""Trains on the workers of a Ray cluster: Ray sets TF_CONFIG in every worker, where dqat finds it.

python launch/ray/train.py --workers 2 launch/train_sequence.py -- --units 256

Edit: the resources of a worker, and where the script lies on the cluster's machines (working_dir sends this
folder). Needs `pip install 'ray[train]' 'pyarrow<20'` beside dqat: later pyarrows ask for NumPy 2.
"""

import os
import pathlib
import runpy
import sys
from typing import Annotated, Any

import ray
import typer
from ray.train import ScalingConfig
from ray.train.tensorflow import TensorflowTrainer


def train(config: dict[str, Any]) -> None:
    """What a worker does: runs the script as if it had been started by hand."""
    script = pathlib.Path(config["script"])
    sys.argv = [str(script), *config["options"]]
    sys.path.insert(0, str(script.parent.resolve()))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:  # typer ends a script this way, with 0 where all went well
        if ended.code not in (None, 0):
            raise RuntimeError(f"{script} ended with {ended.code}") from ended


def main(
    script: Annotated[pathlib.Path, typer.Argument(help="The training script.")] = pathlib.Path(
        "launch/train_sequence.py"
    ),
    options: Annotated[list[str] | None, typer.Argument(help="Its options, after --.")] = None,
    workers: Annotated[int, typer.Option(help="Number of workers.")] = 2,
    gpu: Annotated[bool, typer.Option(help="One GPU for each worker.")] = False,
) -> None:
    """Starts the workers and waits for them."""
    # Scripts and data are named from the project's folder, which is where workers stay then.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    ray.init(runtime_env={"working_dir": ".", "excludes": [".git", ".venv", "build", "out"]})
    trainer = TensorflowTrainer(
        train,
        train_loop_config={"script": str(script), "options": options or []},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
    )
    trainer.fit()


if __name__ == "__main__":
    typer.run(main)
