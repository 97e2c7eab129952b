"""Prepare a corpus as an Apache Beam pipeline: its workers make the shards of lm.prepare, bit for bit.

    pip install -r launch/requirements-beam.txt
    python -m launch.beam --text='books/*.txt' --portions=8 --beam=--direct_running_mode=multi_processing

The cache (--cache, LM_CACHE) must be a folder that all workers share, and the files must have the same paths everywhere.
"""

from __future__ import annotations

from absl import flags

from lm.config import Config
from lm.data.corpus.corpus import Data
from lm.data.corpus.prepare import prepare, prepare_portion
from lm.errors import UserError, one_line
from lm.flags import run
from lm.prepare import data_from, define_flags, summary


def portion(k: int, data: Data, count: int, cache: str | None) -> int:
    """Prepare a portion of the shards; when Beam retries a bundle, those that exist are skipped."""
    try:
        prepare_portion(data, (k, count), cache)
    except UserError as error:  # of a class that Beam can pickle
        raise RuntimeError(str(error)) from None
    return k


def main(overrides: list[tuple[str, str]]) -> None:
    """Run the pipeline, join the shards, and print the summary of the corpus."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("launch.beam needs Apache Beam: pip install -r launch/requirements-beam.txt") from None
    flag = flags.FLAGS
    data = data_from(overrides)
    data.source.open()  # raises for a wrong path before the workers start
    try:
        with beam.Pipeline(options=PipelineOptions(flag.beam)) as pipeline:
            portions = pipeline | beam.Create(range(flag.portions)) | beam.Reshuffle()
            _ = portions | beam.Map(portion, data, flag.portions, flag.cache)
    except RuntimeError as error:  # with a worker's traceback in its text
        lines = [line.strip() for line in str(error).splitlines() if "[while running" in line]
        raise UserError(lines[-1] if lines else one_line(str(error))) from None
    print(summary(prepare(data, flag.cache)))


if __name__ == "__main__":
    define_flags()
    for name in ("shard", "verify"):
        delattr(flags.FLAGS, name)
    flags.DEFINE_integer("portions", 8, "elements of the pipeline, each with a portion of the shards", 1, 1_000_000)
    flags.DEFINE_multi_string("beam", [], "an option of Beam, such as --beam=--runner=FlinkRunner; may be repeated")
    run(main, Config)
