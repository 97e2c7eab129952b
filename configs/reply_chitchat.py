"""A reply to the last three turns of a conversation, by a decoder that is asked by a prompt: 7,168 chats of strangers.

    python -m launch.finetune --tasks=chitchat
    python -m lm.main --config=configs/reply_chitchat.py:text=TRAIN,held_out=HELD_OUT,start=RUN

A GPT of 3 layers of 128, from nothing or from one of minutes that read the training chats (`start_nano`, kind=causal).
Look at bits_per_byte of the replies: likeness to the one reply that was given says little of a conversation.
"""

from configs.start_nano import DECODER, tuned, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import BytePair
from lm.objectives.text2text import Reply, Text2text


def config(
    text: str = "runs/finetune/data/chitchat/train.jsonl",
    held_out: str = "runs/finetune/data/chitchat/held_out.jsonl",
    start: str | None = None,
    steps: int = 300,
) -> Config:
    return Config(
        objective=Text2text(model=tuned(DECODER), source="{context}\n>", lengths=(96, 48), keep="end", reply=Reply(tokens=48)),
        data=Data(source=Labelled(path=text), validation=Labelled(path=held_out), tokenizer=BytePair(vocab=8192)),
        optimizer=tuning(start, 4e-3, 2e-3),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=8,
        start=start,
        every=Every(log=50, evaluate=250, save=250, sample=250),
    )
