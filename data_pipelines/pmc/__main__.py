r"""PMC Open Access articles -> a DATASET of figures or panels with captions, context and signals.

    python -m data_pipelines.pmc --input=FOLDER --out=DATASET

The input is a folder with, at any depth, article folders (an .nxml or .xml and its images), NCBI
packages (PMC123.tar.gz) or bulk archives; or one such file; local or, through fsspec, s3:// and
gs://. `python -m data_pipelines.pmc.fetch` gets them. Every figure of every article becomes a
record (compound figures: one a panel) or a line of dropped.jsonl with its reason.

    ... --read_labels                   panels told apart and named by the letters in them (OCR)
    ... --summary=textrank              the paragraphs that cite a figure, in three sentences
    ... --similarity=RUN                a column with the CLIP score of each pair under a checkpoint
    ... --duplicates_of=ROCO,PMC_OA     a column with the datasets that have the image, too

A batch of articles is one shard, which is written whole or not at all; the same command goes on
where it stopped, and gives the same bytes with any number of workers. --out may be a folder, or a
URL of a bucket (gs://, s3://). On one machine, --workers processes do it. With options of Apache
Beam the same batches run wherever Beam does; --input and --out are then URLs, or paths that all
workers share:

    ... --runner=DirectRunner --direct_num_workers=4 --direct_running_mode=multi_processing
    ... --runner=FlinkRunner --flink_master=HOST:8081 \
        --environment_type=DOCKER --environment_config=IMAGE
    ... --runner=SparkRunner --spark_master_url=spark://HOST:7077 \
        --environment_type=DOCKER --environment_config=IMAGE
    ... --input=gs://B/ARTICLES --out=gs://B/DATASET --runner=DataflowRunner \
        --project=P --region=R --temp_location=gs://B/tmp --sdk_container_image=IMAGE \
        --max_num_workers=100 --number_of_worker_harness_threads=1

IMAGE has what is installed here, above all the same Python, Beam and Pillow. A Dockerfile:

    FROM apache/beam_python3.11_sdk:2.77.0
    COPY . /jaxclip
    RUN pip install -c /jaxclip/constraints.txt "/jaxclip[clouds,pipelines]"

The machine that starts it needs the same extras for gs:// and s3://, and for Dataflow
`pip install "apache-beam[gcp]"`. It does what only all records together can tell (duplicates, the
vocabulary), and for that fetches shards from a URL, one at a time a process, to TMPDIR. Training
reads local files: what is in a bucket is copied or mounted first, as the summary at the end says.
"""

import functools
import sys

from data_pipelines.options import run, take_beam_options
from data_pipelines.pmc.build import build_pmc
from data_pipelines.pmc.context import ContextOptions
from data_pipelines.pmc.options import PmcOptions

if __name__ == "__main__":
    beam = take_beam_options(sys.argv)
    run(functools.partial(build_pmc, beam=beam), PmcOptions, ContextOptions)
