"""Train the auto-encoder that comes with the package: stage 1, on patches of scikit-image's photographs. Minutes; the same weights again on the same machine.

python data_prep/pretrained.py
"""

import shutil
from dataclasses import replace
from pathlib import Path

import wae_nb
from wae_nb.lab.experiment import Experiment
from wae_nb.train.specs import STAGE_1

EPOCHS = 20
HERE = Path(wae_nb.__file__).parent / "method/pretrained"


def main() -> None:
    exp = Experiment("strong", "vgg16", kind="photos", mixed_precision="auto")
    (run,) = exp.runs(exp.specs("wae", STAGE_1, wae=replace(exp.recipe.wae, epochs=EPOCHS)))
    HERE.mkdir(exist_ok=True)
    shutil.copyfile(run.folder / "model.safetensors", HERE / "wae.safetensors")
    test = run.record["test"]
    print(f"{HERE / 'wae.safetensors'}: PSNR {test['psnr']:.1f} dB on the test patches, energy of I_H {test['energy_high'] / test['energy_low']:.1%} of I_L's")


if __name__ == "__main__":
    main()
