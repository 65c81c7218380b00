"""Pre-training methods: ``(encoder, images, run) → Trained``, one method, one file."""

METHODS = {
    "clip": "sapper.pretraining.clip:CLIP",
    "simclr": "sapper.pretraining.simclr:SimCLR",
    "supervised": "sapper.pretraining.supervised:Supervised",
}
