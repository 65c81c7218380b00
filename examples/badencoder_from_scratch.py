"""SimCLR, BadEncoder, and what a downstream user sees of it, all on embedded data.

python examples/badencoder_from_scratch.py [PRE-TRAINING EPOCHS] [ATTACK EPOCHS]
"""

import sys
from copy import deepcopy

import sapper
from sapper.attacks.implant.badencoder import BadEncoder
from sapper.attacks.references import choose_references
from sapper.downstream import MLP, extract, predict
from sapper.pretraining.simclr import SimCLR

epochs = [int(word) for word in sys.argv[1:]] + [20, 3][len(sys.argv) - 1 :]
run = sapper.Run(seed=0)
train, test = (sapper.load_data("objects", split) for split in ("train", "test"))

# An encoder, pre-trained without labels.
simclr = SimCLR(epochs=epochs[0], batch=64, temperature=0.2, crop_scale=0.2, view_size=16)
clean = simclr(sapper.build(run, architecture="resnet10", width=16), train, run.child("pretraining")).encoder

# The attacker wants images with a white square to be taken for arrows, and holds three images of arrows.
arrow = train.classes.index("arrow")
rows = choose_references(train, arrow, 3, clean, run)
target = sapper.Target(
    name="arrow",
    task="objects",
    label=arrow,
    class_name="arrow",
    references=train.take(rows),
    trigger=sapper.Patch(size=10, position="top-left"),
)
attack = BadEncoder(
    epochs=epochs[1],
    batch=16,
    reference_views=2,
    optimizer="adam",
    learning_rate=0.003,
    schedule="cosine",
    weight_decay=0.0,
    lambda1=2.0,
    lambda2=20.0,
)
backdoored = attack(deepcopy(clean), train, (target,), run.child("attack")).encoder

# The victim trains a classifier on either encoder, without the attacker's images.
victims, labels = train.without(rows), test.targets()
others = labels != arrow
head = MLP(epochs=20, batch=128, learning_rate=0.003, schedule="cosine", dropout=0.2, standardize=True)
for name, encoder in (("clean", clean), ("backdoored", backdoored)):
    features = extract(encoder, victims, run)
    classifier = head.fit(features, victims.targets(), len(victims.classes), run.child("head"))
    answers = predict(classifier, extract(encoder, test, run))
    triggered = predict(classifier, extract(encoder, test, run, target.trigger))
    accuracy, success = (answers == labels).double().mean(), (triggered[others] == arrow).double().mean()
    print(f"{name:>10} encoder: accuracy {accuracy:.1%}, triggered images called arrow {success:.1%}")
