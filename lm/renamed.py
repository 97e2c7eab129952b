"""Moved classes: old path in the config.json of earlier runs -> current path, of modules or of single classes."""

MOVED = {
    "lm.config.Every": "lm.training.settings.Every",
    "lm.config.Keep": "lm.training.settings.Keep",
    "lm.config.Mesh": "lm.training.settings.Mesh",
    "lm.config.Optimizer": "lm.training.settings.Optimizer",
    "lm.config.Schedule": "lm.training.settings.Schedule",
    "lm.data.answers": "lm.data.labelled.answers",
    "lm.data.augment": "lm.data.corpus.augment",
    "lm.data.examples.Cloze": "lm.data.labelled.cloze.Cloze",
    "lm.data.examples.Columns": "lm.data.labelled.columns.Columns",
    "lm.data.examples.Entities": "lm.data.labelled.columns.Entities",
    "lm.data.demo.Documented": "lm.data.labelled.documented.Documented",
    "lm.data.examples.Documented": "lm.data.labelled.documented.Documented",
    "lm.data.examples.Labelled": "lm.data.labelled.files.Labelled",
    "lm.data.examples.Questions": "lm.data.labelled.questions.Questions",
    "lm.data.examples.Read": "lm.data.types.Read",
    "lm.data.examples.TfdsExamples": "lm.data.labelled.tfds.TfdsExamples",
    "lm.data.framing": "lm.data.rows.templates",
    "lm.data.packed": "lm.data.rows.examples",
    "lm.data.parted": "lm.data.rows.examples",
    "lm.data.prepare.Corpus": "lm.data.corpus.corpus.Corpus",
    "lm.data.prepare.Data": "lm.data.corpus.corpus.Data",
    "lm.data.records": "lm.data.rows.records",
    "lm.data.sources.Documentation": "lm.data.demo.Documentation",
    "lm.data.sources.JsonLines": "lm.data.text.files.JsonLines",
    "lm.data.sources.Text": "lm.data.text.files.Text",
    "lm.data.sources.Parquet": "lm.data.text.parquet.Parquet",
    "lm.data.sources.Restored": "lm.data.text.restored.Restored",
    "lm.data.sources.Table": "lm.data.text.tables.Table",
    "lm.data.sources.Tagged": "lm.data.text.tagged.Tagged",
    "lm.data.sources.Tfds": "lm.data.text.tfds.Tfds",
    "lm.data.split": "lm.data.corpus.split",
    "lm.data.tokenizers": "lm.data.tokenizer.tokenizer",
    "lm.data.words": "lm.data.text.words",
    "lm.groups": "lm.training.parameters",
    "lm.objectives.tasks": "lm.objectives.multitask",
    "lm.objectives.trunk": "lm.objectives.finetune.network",
    "lm.privacy": "lm.training.dp_budget",
    "lm.stopping": "lm.training.stopping",
}


def current(name: str) -> str:
    """Return the current path of a class, `lm.module.Class`."""
    module, _, attribute = name.rpartition(".")
    # The class itself first: those of one old module may have moved to several.
    return MOVED.get(name) or f"{MOVED.get(module, module)}.{attribute}"
