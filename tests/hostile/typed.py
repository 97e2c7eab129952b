"""Typed mistakes of every command: a line each, `arguments => STATUS words|other words` (2 where no status is given)."""

from tests.hostile.case import Case

TINY = "tests/configs/tiny.py:text=a.txt"

MAIN = """
--workdirr=x => workdirr
--config.steps=0 => steps
--config.steps=-1 => steps
--config.steps=many => steps
--config.steps=2.5 => steps
--config.steps=nan => steps
--config.steps=1e30 => steps
--config.steps= => steps
--config.batch=0 => batch
--config.batch=-8 => batch
--config.batch=1e15 => batch|memory|needs
--config.batch=1e8 => batch|memory|needs|devices
--config.batch=9 --config.micro_batches=2 => micro_batches
--config.micro_batches=3 => micro_batches
--config.micro_batches=0 => micro_batches
--config.seed=99999999999 => seed
--config.seed=x => seed
--seed=x => seed
--seed=99999999999999999999999 => seed
--config.optimizer.lrr=1 => optimizer.lr
--config.optimizer.learning_rate=1 => optimizer.lr
--config.learning_rate=1 => optimizer.lr
--config.optimizer.lr=-1 => lr
--config.optimizer.lr=nan => lr
--config.optimizer.lr=inf => lr
--config.optimizer.name=adam => adamw
--config.optimizer.betas=0.9 => betas
--config.optimizer.betas=0.9,1.0 => betas
--config.optimizer.betas=a,b => betas
--config.optimizer.eps=0 => eps
--config.optimizer.clip=-1 => clip
--config.optimizer.average=1 => average
--config.optimizer=adamw => optimizer
--config.optimizer.private.clip=-1 => clip
--config.optimizer.groups.train=nothing_like_it => nothing_like_it
--config.schedule.shape=linaer => linear
--config.schedule.warmup=-1 => warmup
--config.schedule.final=2 => final
--config.mesh.fsdp=3 => device
--config.mesh.data=0 => mesh|data|device
--config.mesh.tensor=-2 => mesh|tensor|device
--config.mesh.data=-1 --config.mesh.fsdp=-1 => -1
--config.mesh.fsdp=1000000000000 => device
--config.every.log=0 => every.log
--config.every.save=-3 => save
--config.every.evaluate=-1 => evaluate
--config.every.sample=-1 => sample
--config.every.save=x => every.save
--config.keep.last=-1 => last
--config.keep.best=x => best
--config.stop.patience=-1 => patience
--config.stop.patience=2 --config.stop.metric=unheard => unheard
--config.stop.patience=2 --config.every.evaluate=0 => evaluate
--config.stop.mode=up => mode
--config.evaluate=perplexity:none.txt => none.txt
--config.evaluate=unheard => unheard
--config.evaluate=choices:broken.jsonl => broken.jsonl
--config.start=/nowhere => /nowhere
--config.start=notes.txt => notes.txt
--config.start=. => .
--config.profile=-1 => profile
--config.wandb=true => wandb
--config.wandb=perhaps => wandb
--config.objective.model.width=0 => width
--config.objective.model.width=33 => width|heads
--config.objective.model.width=1e9 => memory|needs
--config.objective.model.width=-4 => width
--config.objective.model.depth=0 => depth
--config.objective.model.depth=1000000000000 => depth|memory|needs
--config.objective.model.heads=0 => heads
--config.objective.model.heads=3 => heads
--config.objective.model.kv_heads=3 => kv_heads
--config.objective.model.context=0 => context
--config.objective.model.context=1000000000 => context|memory|needs
--config.objective.model.dropout=1 => dropout
--config.objective.model.dropout=-0.1 => dropout
--config.objective.model.dtype=float31 => dtype
--config.objective.model.activation=gelux => gelu
--config.objective.model.norm=lawyer => layer
--config.objective.model.positions=none_such => positions
--config.objective.model.vocab=5 => vocab
--config.objective.model.pad_vocab=-8 => pad_vocab
--config.objective.model.remat=some => remat
--config.objective.model.lora.rank=-1 => rank
--config.objective.model.lora.rank=2 --config.objective.model.lora.targets=nothing => targets|nothing
--config.model.width=64 => objective.model.width
--config.objective.n_layer=2 => objective.model.depth
--config.data.validation=1 => validation
--config.data.validation=-0.1 => validation
--config.data.source.path=none.txt => none.txt
--config.data.packing=tight => packing
--config.data.fold=2/5 => fold
--config.data.tokenizer=bpe => tokenizer
--distributed=x => distributed
stray words => stray
"""

OBJECTIVES = """
lm.main --config=tests/configs/tiny.py --workdir=gs://bucket/w => mount
lm.main --config=none.py --workdir=w => none.py
lm.main --workdir=w => config
lm.main --config=configs --workdir=w => configs
lm.main --config=tests/configs/tiny.py:unheard=1 --workdir=w => unheard
lm.main --config=tests/configs/tiny.py:text --workdir=w => text
lm.main --config=tests/configs/tiny.py:text=none.txt --workdir=w => none.txt
lm.main --config=tests/configs/tiny.py:text=empty.txt --workdir=w => empty.txt|no text
lm.main --config=tests/configs/tiny.py:text=bytes.txt --workdir=w => UTF-8
lm.main --config=tests/configs/tiny.py:text=short.txt --workdir=w => short|token|text
lm.main --config=tests/configs/tiny.py:dropout=x,text=a.txt --workdir=w => dropout
lm.main --config=syntax.py --workdir=w => syntax.py
lm.main --config=imports.py --workdir=w => no_such_module
lm.main --config=raises.py --workdir=w => raises.py
lm.main --config=fails.py --workdir=w => fails.py
lm.main --config=none_such/none.py --workdir=w => none.py
lm.main --config=wrong.py --workdir=w => wrong.py
lm.main --config=latin.py --workdir=w => latin.py
lm.main --config=RUN/config.json --config.steps=0 --workdir=w => steps|config.json
lm.main --config=tests/configs/tiny_classify.py:kind=two --workdir=w => kind
lm.main --config=tests/configs/tiny_classify.py --config.data.source.path=none.csv --workdir=w => none.csv
lm.main --config=tests/configs/tiny_classify.py --config.data.source.path=empty.txt --workdir=w => empty.txt
lm.main --config=tests/configs/tiny_classify.py --config.data.source.path=deep.jsonl --workdir=w => deep.jsonl
lm.main --config=tests/configs/tiny_classify.py --config.data.source.path=digits.jsonl --workdir=w => digits.jsonl
lm.main --config=tests/configs/tiny_classify.py --config.objective.label=unheard --workdir=w => unheard
lm.main --config=tests/configs/tiny_classify.py --config.objective.smoothing=2 --workdir=w => smoothing
lm.main --config=tests/configs/tiny_tag.py --config.data.source.path=none.conll --workdir=w => none.conll
lm.main --config=tests/configs/tiny_extract.py --config.data.source.path=list.json --workdir=w => list.json
lm.objectives.causal --config.steps=0 => steps
lm.objectives.masked --config.objective.rate=2 => rate
lm.objectives.masked --config.objective.sentence=nps => sentence
lm.objectives.span --config.objective.noise=2 => noise
lm.objectives.denoise --unheard => unheard
"""

GENERATE = """
 => prompt|workdir|model
--workdir=none --prompt=x => none
--model=none --prompt=x => none
--workdir=notes.txt --prompt=x => notes.txt
--workdir=HF --prompt=x => HF
--model=RUN --prompt=x => RUN
--workdir=RUN --model=HF --prompt=x => model|workdir
--model=HF --prompt=x --strategy=beem => beam
--model=HF --prompt=x --temperature=-1 => temperature
--model=HF --prompt=x --temperature=nan => temperature
--model=HF --prompt=x --temperature=x => temperature
--model=HF --prompt=x --top_k=-1 => top_k
--model=HF --prompt=x --top_p=2 => top_p
--model=HF --prompt=x --top_p=0 => top_p
--model=HF --prompt=x --min_p=2 => min_p
--model=HF --prompt=x --typical_p=-1 => typical
--model=HF --prompt=x --epsilon=2 => epsilon
--model=HF --prompt=x --eta=2 => eta
--model=HF --prompt=x --num_samples=0 => num_samples
--model=HF --prompt=x --num_samples=1000000000 => num_samples|memory|needs
--model=HF --prompt=x --max_new_tokens=0 => max_new_tokens
--model=HF --prompt=x --max_new_tokens=-1 => max_new_tokens
--model=HF --prompt=x --strategy=beam --max_new_tokens=1000 => max_new_tokens|context|pass
--model=HF --prompt=x --max_new_tokens=9999999999999999999 => max_new_tokens|context|pass
--model=HF --prompt=x --min_new_tokens=-1 => min_new_tokens
--model=HF --prompt=x --min_new_tokens=9 --max_new_tokens=5 => min_new_tokens
--model=HF --prompt=x --seed=99999999999999999999999 => seed|number
--model=HF --prompt=x --repetition_penalty=0 => repetition_penalty
--model=HF --prompt=x --repetition_penalty=inf => repetition_penalty
--model=HF --prompt=x --frequency_penalty=nan => frequency_penalty
--model=HF --prompt=x --no_repeat_ngram=-1 => no_repeat_ngram
--model=HF --prompt=x --length_penalty=nan --strategy=beam => length_penalty
--model=HF --prompt=x --num_beams=4 => num_beams
--model=HF --prompt=x --num_beams=0 --strategy=beam => num_beams
--model=HF --prompt=x --num_beams=100000000 --strategy=beam => num_beams|memory|needs|vocab
--model=HF --prompt=x --num_beams=3 --num_beam_groups=2 --strategy=beam => group
--model=HF --prompt=x --early_stopping=perhaps --strategy=beam => early_stopping
--model=HF --prompt=x --length_norm=x --strategy=beam => length_norm|gnmt
--model=HF --prompt=x --penalty_alpha=2 --strategy=contrastive => alpha
--model=HF --prompt=x --strategy=contrastive --top_k=0 => top_k
--model=HF --prompt=x --strategy=speculative => draft
--model=HF --prompt=x --strategy=speculative --draft=none => none
--model=HF --prompt=x --strategy=speculative --draft=HF --draft_tokens=0 => draft_tokens
--model=HF --prompt=x --strategy=speculative --draft=RUN => tokenizer|vocab
--model=HF --prompt=x --strategy=fill => fill in
--model=HF --prompt=x --strategy=gibbs => fill in
--model=HF --prompt=x --strategy=mask_predict => mask
--workdir=MASKED --prompt=x => masked|strategy|fill
--workdir=MASKED --prompt=x[MASK] --strategy=fill --order=random => order
--workdir=MASKED --prompt=x --strategy=fill => MASK
--workdir=MASKED --prompt=x --strategy=gibbs --iterations=0 => iterations
--workdir=MASKED --prompt=x --strategy=gibbs --walk=fast => walk
--workdir=CLS --prompt=x => generate|predict|write|continu
--model=HF --prompt=x --stop= => stop
--model=HF --prompt=x --bad_words= => bad_words
--model=HF --strategy=beam --prompt={LONG} => context|tokens|pass
--workdir=RUN --strategy=beam --prompt={LONG} => context|tokens|pass
--workdir=RUN --prompt=x --step=5 => step
--workdir=RUN --prompt=x --step=newest => step
--workdir=RUN --prompt=x --step=-1 => step
--model=HF --prompt=x --chat => chat|template
--model=HF --prompt=x --system=be => chat
--model=HF --prompt=x --regex=( => regex|bracket
--model=HF --prompt=x --regex=a --json_schema={} => json_schema
--model=HF --prompt=x --json_schema=none.json => none.json|json
--model=HF --prompt=x --regex=a --strategy=beam --num_beams=2 => 02
--model=HF --prompts=prompts.txt => output
--model=HF --prompts=none.txt --output=o.jsonl => none.txt
--model=HF --prompts=empty.txt --output=o.jsonl => empty.txt|no prompt
--model=HF --prompts=broken.jsonl --output=o.jsonl => broken.jsonl
--model=HF --prompts=other.jsonl --output=o.jsonl => other.jsonl
--model=HF --prompts=bytes.jsonl --output=o.jsonl => UTF-8|bytes
--model=HF --prompts=deep.jsonl --output=o.jsonl => deep.jsonl
--model=HF --prompts=prompts.txt --output=none/o.jsonl => none
--model=HF --prompts=prompts.txt --output=prompts.txt => prompts.txt
--model=HF --prompt=x --output=none/o.jsonl => none
--model=HF --prompt=x --output=. => folder
--model=HF --prompt=x --output=HF/config.json => HF
--config.steps=5 --model=HF --prompt=x => config
"""

EVALUATE = """
 => workdir|model
--workdir=none => none
--model=HF => tasks|held-out
--workdir=RUN --tasks=unheard => unheard
--workdir=RUN --tasks=perplexity => perplexity
--workdir=RUN --tasks=perplexity:none.txt => none.txt
--workdir=RUN --tasks=perplexity:empty.txt => empty.txt|no text
--workdir=RUN --tasks=perplexity:bytes.txt => UTF-8
--workdir=RUN --tasks=perplexity:a.txt?window=-1 => window
--workdir=RUN --tasks=perplexity:a.txt?stride=99 => stride|window
--workdir=RUN --tasks=perplexity:a.txt?unheard=1 => unheard
--workdir=RUN --tasks=perplexity:a.txt?window=x => window
--workdir=RUN --tasks=choices:none.jsonl => none.jsonl
--workdir=RUN --tasks=choices:broken.jsonl => broken.jsonl
--workdir=RUN --tasks=choices:deep.jsonl => deep.jsonl
--workdir=RUN --tasks=choices:digits.jsonl => digits.jsonl
--workdir=RUN --tasks=choices:list.jsonl => list.jsonl
--workdir=RUN --tasks=choices:other.jsonl => other.jsonl
--workdir=RUN --tasks=choices:bytes.jsonl => UTF-8
--workdir=RUN --tasks=choices:choices.jsonl?shots.count=-1 => count
--workdir=RUN --tasks=choices:choices.jsonl?shots.count=99 => shots|count
--workdir=RUN --tasks=pairs:other.jsonl => other.jsonl
--workdir=RUN --tasks=last_word:other.jsonl => other.jsonl
--workdir=RUN --tasks=answers:other.jsonl => other.jsonl
--workdir=RUN --tasks=similarity:other.jsonl => other.jsonl
--workdir=RUN --tasks=noise:ok.jsonl?rate=2 => rate
--workdir=RUN --tasks=noise:ok.jsonl?how=loud => how
--workdir=RUN --tasks=texts:other.jsonl => other.jsonl
--workdir=RUN --tasks=disturbed:new.jsonl => classif|disturbed
--workdir=RUN --text={LONG} => tokens|context
--workdir=RUN --step=7 => step
--workdir=RUN --output=RUN/config.json => RUN
--workdir=RUN --output=RUN/metrics.jsonl => RUN
--workdir=RUN --output=notes.txt => notes.txt
--workdir=RUN --output=none/x.json => none
--workdir=RUN --config.steps=5 => config
--workdir=RUN --seed=x => seed
--workdir=CLS --tasks=attacked:x.csv?synonyms=none.json => none.json|x.csv
"""

OTHERS = """
lm.predict => input
lm.predict --input=new.txt => workdir|model
lm.predict --workdir=none --input=new.txt => none
lm.predict --workdir=RUN --input=new.txt => running text
lm.predict --workdir=CLS --input=none.txt => none.txt
lm.predict --workdir=CLS --input=empty.txt => empty.txt
lm.predict --workdir=CLS --input=bytes.txt => UTF-8
lm.predict --workdir=CLS --input=broken.jsonl => broken.jsonl
lm.predict --workdir=CLS --input=deep.jsonl => deep.jsonl
lm.predict --workdir=CLS --input=other.jsonl => text
lm.predict --workdir=CLS --input=new.txt --task=reviews => task
lm.predict --workdir=CLS --input=new.txt --output=none/o.jsonl => none
lm.predict --workdir=CLS --input=new.txt --output=o.json => SQuAD
lm.predict --workdir=CLS --input=new.txt --step=99 => step
lm.predict --workdir=QA --input=list.json => list.json
lm.predict --workdir=QA --input=broken.json => broken.json
lm.predict --workdir=TAG --input=x.csv => tagger|x.csv
lm.convert => model|workdir
lm.convert --model=HF => workdir|output
lm.convert --model=none --workdir=w => none
lm.convert --workdir=none --output=o => none
lm.convert --workdir=RUN --output=notes.txt => notes.txt
lm.convert --workdir=RUN --output=RUN => RUN
lm.convert --model=HF --workdir=RUN => RUN
lm.convert --model=HF --workdir=notes.txt/x => notes.txt
lm.convert --model=HF --output=o --initialise=zero --add_tokens=new.txt => initialise
lm.convert --model=HF --output=o --add_tokens=none.txt => none.txt
lm.convert --model=HF --output=o --add_tokens=empty.txt => empty.txt
lm.convert --model=HF --output=o --add_tokens=bytes.txt => UTF-8
lm.convert --model=HF --output=o --tokenizer=none => none
lm.convert --model=HF --output=o --pad_vocab=-1 --add_tokens=new.txt => pad_vocab
lm.convert --workdir=RUN --output=o --step=99 => step
lm.convert --check --model=none => none
lm.explain --workdir=RUN => text
lm.explain --workdir=none --text=x => none
lm.explain --workdir=RUN --text= => text
lm.explain --workdir=RUN --text={LONG} => tokens
lm.explain --workdir=RUN --text=ab --layers=99 => layers
lm.explain --workdir=RUN --text=ab --layers=x => layers
lm.explain --workdir=RUN --text=ab --attribute=99 => attribute
lm.explain --workdir=RUN --text=ab --baseline=unheard => baseline
lm.explain --workdir=RUN --text=ab --top=0 => top
lm.explain --workdir=RUN --text=ab --target=x => target
lm.explain --workdir=RUN --text=ab --output=notes.txt => notes.txt
lm.compile => config
lm.compile --config={TINY} --topology=v5e:4x5x9 => topology|libtpu
lm.compile --config={TINY} --vocab=-1 => vocab
lm.compile --config=none.py => none.py
lm.prepare --text=gs://bucket/a.txt => mount
lm.prepare --text=a.txt --shard=3/2 => --shard=3/2
lm.prepare --text=none.txt => none.txt
lm.prepare --text=none*.txt => none
lm.prepare --text=empty.txt => empty.txt|no text
lm.prepare --text=bytes.txt => UTF-8
lm.prepare --text=a.txt --tokenizer=none => tokenizer
lm.prepare --text=a.txt --tokenizer=notes.txt => notes.txt
lm.prepare --text=a.txt --vocab=0 => vocab
lm.prepare --text=a.txt --vocab=1000000000000 => vocab|memory|needs
lm.prepare --text=a.txt --validation=1 => validation
lm.prepare --text=a.txt --validation=nan => validation
lm.prepare --text=broken.jsonl => broken.jsonl
lm.prepare --text=deep.jsonl => deep.jsonl
lm.prepare --text=digits.jsonl => digits.jsonl
lm.prepare --text=list.jsonl => list.jsonl
lm.prepare --text=junk.parquet => junk.parquet
lm.prepare --text=a.txt --cache=notes.txt/x => notes.txt
lm.prepare --data=unheard:x => unheard
lm.evaluation.kneser_ney --config={TINY} --order=0 => order
lm.evaluation.kneser_ney --config={TINY} --order=100000 => order|memory|needs
lm.evaluation.kneser_ney --config=none.py => none.py
lm.evaluation.report.judging => sheet|read
lm.evaluation.report.judging --outputs=a.jsonl --sheet=s.csv => two
lm.evaluation.report.judging --outputs=a.jsonl --outputs=none.jsonl --sheet=s.csv => none.jsonl
lm.evaluation.report.judging --outputs=a.jsonl --outputs=b.jsonl --sheet=x.html => csv
lm.evaluation.report.judging --outputs=a.jsonl --outputs=b.jsonl --sheet=a.txt/s.csv => a.txt
lm.evaluation.report.judging --read=none.csv --key=none.json => none
lm.evaluation.report.judging --read=x.csv --key=notes.txt => notes.txt
lm.evaluation.harness --model=HF => tasks|lm-eval|lm_eval
lm.evaluation.harness --model=HF --tasks=arc_easy => lm-eval|lm_eval
lm.evaluation.again --workdir=RUN => RUN|running text|examples
lm.evaluation.again --workdir=none => none
lm.plots --workdir=none => none
lm.plots => workdir
launch.bench --output=nodir/x.json => nodir
launch.bench --steps=-1 => steps
launch.bench --parts=unheard => unheard
launch.folds => config
launch.folds --config=tests/configs/tiny_classify.py --folds=1 => folds
launch.folds --config=tests/configs/tiny_classify.py --workdir=a.txt => a.txt
launch.folds --config={TINY} => labelled
launch.learning --only=unheard => unheard
launch.finetune --tasks=unheard => unheard
launch.finetune --seeds=0 => seeds
"""


def rows(group: str, prefix: str, table: str, quick: bool = False) -> list[Case]:
    """Make cases of a table's lines."""
    cases = []
    for line in table.strip("\n").splitlines():
        args, _, expect = line.rpartition(" => ")
        run = f"{prefix} {args}".strip().replace("{LONG}", "word" * 400).replace("{TINY}", TINY)
        if "=>" in line and not args:
            run = prefix
        expect = expect if expect[0].isdigit() else f"2 {expect}"
        cases.append(Case(group, args[:60] or "nothing", quoted(run), expect, quick=quick))
    return cases


def quoted(run: str) -> str:
    """Quote what a shell would take for its own."""
    return run.replace("'", "'\"'\"'") if "'" in run else run.replace('"', "'\"'")


MAIN_GROUP, OTHER_GROUP = "typed: lm.main", "typed: other commands"
CASES = [
    *rows(MAIN_GROUP, f"lm.main --config={TINY} --workdir=w", MAIN),
    *rows(MAIN_GROUP, "", OBJECTIVES),
    *rows(OTHER_GROUP, "lm.generate", GENERATE),
    *rows(OTHER_GROUP, "lm.evaluate", EVALUATE),
    *rows(OTHER_GROUP, "", OTHERS),
]
