"""A training that takes no time to speak of: `fake_training.py FOLDER STEPS [STEP-TO-FAIL-AT]`.

It leaves what a run leaves, saves each tenth step, and notes in `starts` the step it began at, in `overlap`
another one that was at work in the folder.
"""
import contextlib
import json
import os
import sys
import time
from pathlib import Path

folder, steps, fail = Path(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or ['-1'])[0])
owner, saved = folder / 'owner', folder / 'step'
if owner.exists():
    state = Path(f'/proc/{owner.read_text()}/stat')
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if state.read_text().rpartition(')')[2].split()[0] != 'Z':  # one that ended, and nobody asked how
            (folder / 'overlap').touch()
owner.write_text(str(os.getpid()))
first = int(saved.read_text()) if saved.exists() else 0
with (folder / 'starts').open('a') as file:
    file.write(f'{first}\n')
for step in range(first + 1, steps + 1):
    time.sleep(0.01)
    print(f'Iter(train) [{step}/{steps}]  eta: 0:00:{steps - step:02d}  loss: 1.0', flush=True)
    if step == fail:
        sys.exit('the fake training failed as it was told to')
    if step % 10 == 0:
        saved.with_suffix('.new').write_text(str(step))
        saved.with_suffix('.new').rename(saved)
log = folder / '20260101_000000/vis_data/scalars.json'
log.parent.mkdir(parents=True, exist_ok=True)
log.write_text(json.dumps({'iter': steps, 'loss': 1.0}) + '\n'
               + json.dumps({'voc/mAP': 0.5, 'voc/AP50': 0.5, 'voc/AP50/disc': 0.4, 'voc/AP50/ring': 0.6,
                             'voc/mAP_11points': 0.45, 'step': 0}) + '\n')
(folder / 'fake.py').write_text(f'train_cfg = dict(max_iters={steps}, val_interval={steps})\n')
(folder / 'last_checkpoint').write_text(str(folder / f'iter_{steps}.pth'))
owner.unlink()
