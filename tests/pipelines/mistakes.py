"""Mistakes that a user can make: files, command lines that use them, and what is said about each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# In all of these, {root} stands for the folder that holds the files.
OPTIONS = {
    "encoder.num_latents": 2,
    "encoder.num_latent_channels": 8,
    "encoder.num_layers": 1,
    "encoder.num_self_attention_layers_per_block": 1,
    "tracking.mlflow": "false",
    "tracking.tensorboard": "false",
    "tracking.report": "false",
    "data.cache_dir": "{root}/cache",
    "storage_path": "{root}/runs",
}
TEXTS = {"run_name": "texts", "data.path": "toy_reviews", "data.limit": 20, "data.max_seq_len": 16,
         "data.vocab_size": 200}  # fmt: skip
IMAGES = {"run_name": "images", "data.path": "digits", "data.limit": 20, "num_frequency_bands": 2}

ROWS = [(f"film number {i}", i % 2) for i in range(20)]
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
FILES: Mapping[str, str | bytes] = {
    "good.csv": CSV,
    "header.csv": "text,label\n",
    "negative.csv": CSV + "x,-1\n",
    "unseen.csv": CSV + "x,2\n",
    "float.csv": CSV.replace(",1\n", ",1.5\n"),
    "null.csv": CSV + "x,\n",
    "one_class.csv": CSV.replace(",1\n", ",0\n"),
    "three_classes.csv": CSV + "x,2\ny,2\n",
    "wordless.csv": "text,label\n" + '"",0\n"",1\n' * 9,
    "latin.csv": CSV.encode() + "café,0\n".encode("latin-1"),
    "broken.jsonl": '{"text": "a", "label": 0}\n{"text": "b", "label": 1\n',
    "aclImdb/train/neg/0.txt": "bad",
    "aclImdb/train/pos/0.txt": "café".encode("latin-1"),
    "no_rows/train.csv": CSV,
    "no_rows/test.csv": "text,label\n",
    "nothing/readme.md": "",
    "idx/train-images-idx3-ubyte": "damaged",
    "idx/train-labels-idx1-ubyte": "damaged",
    "idx/t10k-images-idx3-ubyte": "damaged",
    "idx/t10k-labels-idx1-ubyte": "damaged",
    "idx_part/train-images-idx3-ubyte": "alone",
    "key.yaml": "trainer:\n  max_epoch: 3\n",
    "value.yaml": "trainer:\n  batch_size: many\n",
    "indent.yaml": "data:\npath: x\n",
    "gap.yaml": "encoder:\n  num_latents:\n",
    "scalar.yaml": "data: 3\n",
    "empty.yaml": "",
    "broken.yaml": "data: [\n",
    "a_file": "",
}

Case = tuple[str, dict[str, Any], str]
"""A verb, its options, and a part of what is said about them."""

COMMAND_LINE: dict[str, Case] = {
    "option": ("mlm", {"trainer.epochs": 3}, "unknown option --trainer.epochs: did you mean --trainer.max_epochs?"),
    "type": ("mlm", {"data.limit": "few"}, "--data.limit: expected int or null, but got few"),
    "choice": ("mlm", {"optimizer.name": "sgd"}, "--optimizer.name: expected one of 'adam', 'adamw', but got sgd"),
    "seed": ("mlm", {"trainer.seed": 2**63}, f"trainer.seed is {2**63}, but must be at least 0 and below 2**63"),
    "heads": ("sentiment", {"frozen.decoder.num_cross_attention_heads": 3},
              "frozen.decoder.num_cross_attention_heads is 3, but must divide num_latent_channels (8) evenly"),
    "config": ("mlm", {"config": "{root}/none.yaml"}, "--config: File does not exist: '{root}/none.yaml'"),
    "config-key": ("mlm", {"config": "{root}/key.yaml"},
                   "unknown option trainer.max_epoch: did you mean trainer.max_epochs?"),
    "config-type": ("mlm", {"config": "{root}/value.yaml"}, "--trainer.batch_size: expected int, but got many"),
    "config-indent": ("mlm", {"config": "{root}/indent.yaml"}, "unknown option path: did you mean data.path?"),
    "config-gap": ("mlm", {"config": "{root}/gap.yaml"}, "encoder.num_latents has no value: give one, or remove it"),
    "config-scalar": ("mlm", {"config": "{root}/scalar.yaml"},
                      "data has to hold options such as data.path: indent them below it, or remove it"),
    "config-empty": ("mlm", {"config": "{root}/empty.yaml"},
                     "--config: the file has to hold options, such as run_name: first"),
    "config-yaml": ("mlm", {"config": "{root}/broken.yaml"}, "--config: not valid YAML: while parsing a flow node"),
}  # fmt: skip

RUNS: dict[str, Case] = {
    "batch": ("mlm", {"trainer.batch_size": 5, "scaling.num_workers": 2},
              "trainer.batch_size is 5, which 2 workers don't divide: choose a multiple of scaling.num_workers"),
    "key_of_a_bucket": ("image-classifier", {**IMAGES, "storage_path": "s3://me:hidden@bucket/x"},
                        "storage_path holds a password or key, which config.yaml, MLflow and jobs would show: "),
    "float16_of_shared_weights": ("image-classifier", {**IMAGES, "scaling.num_workers": 2, "scaling.strategy": "fsdp",
                                                       "trainer.precision": "16-mixed"},
                                  "trainer.precision is 16-mixed, which scaling.strategy fsdp can't do: choose bf16"),
    "batch-of-a-stage": ("sentiment", {"frozen.trainer.batch_size": 5, "scaling.num_workers": 2},
                         "frozen.trainer.batch_size is 5, which 2 workers don't divide"),
    "cores": ("mlm", {"trainer.batch_size": 10**5, "scaling.num_workers": 10**5},
              "scaling.num_workers is 100000, but this machine has "),
    "cores-each": ("mlm", {"scaling.cpus_per_worker": 10**5},
                   "scaling.num_workers is 1, with scaling.cpus_per_worker 100000, but this machine has "),
    "name-above": ("mlm", {"run_name": "../x"}, "run_name '../x' has a slash, a backslash or a control character: use"),
    "name-below": ("mlm", {"run_name": "a/b"}, "run_name 'a/b' has a slash, a backslash or a control character: use"),
    "name-empty": ("mlm", {"run_name": ""}, "run_name '' is empty: use 1 to 100 letters, digits, '-', '_' and '.'"),
    "name-hidden": ("mlm", {"run_name": ".hidden"}, "run_name '.hidden' begins with a dot: use 1 to 100 letters"),
    "storage-below-file": ("mlm", {"storage_path": "{root}/good.csv/x"}, "storage_path '{root}/good.csv/x' cannot be "
                           "written (there is a file where a folder has to be): choose another or mend it"),
    "storage-denied": ("mlm", {"storage_path": "/proc/x"}, "storage_path '/proc/x' cannot be written ("),
    "storage-scheme": ("mlm", {"storage_path": "nope://x"},
                       "storage_path 'nope://x' cannot be opened (Protocol not known: nope): give another path or URI"),
    "run-is-a-file": ("mlm", {"storage_path": "{root}", "run_name": "a_file"},
                      "run_name is a_file, but {root}/a_file is a file: choose another run_name"),
    "cache": ("mlm", {"data.cache_dir": "{root}/good.csv"},
              "cache_dir {root}/good.csv cannot be written (File exists): choose another folder"),
}  # fmt: skip

TEXT_DATA: dict[str, Case] = {
    "empty-path": ("mlm", {"data.path": ""}, "path is empty: name a file, a folder or a data set of the hub"),
    "missing-file": ("mlm", {"data.path": "{root}/none.csv"}, "{root}/none.csv does not exist: correct the path"),
    "missing-folder": ("mlm", {"data.path": "./none"}, "./none does not exist: correct the path (relative ones start"),
    "unknown-user": ("mlm", {"data.path": "~nobody-at-all/x"}, "~nobody-at-all/x does not exist: correct the path"),
    "no-data": ("mlm", {"data.path": "{root}/nothing"}, "the original aclImdb folder, a .csv, .jsonl, .json, .parquet"),
    "no-rows": ("mlm", {"data.path": "{root}/header.csv"}, "{root}/header.csv is empty: add rows"),
    "no-test-rows": ("mlm", {"data.path": "{root}/good.csv", "data.test_path": "{root}/header.csv"},
                     "{root}/header.csv is empty: add rows"),
    "no-rows-hub": ("mlm", {"data.path": "{root}/no_rows"}, "{root}/no_rows has a split without rows: add rows or "),
    "no-rows-parquet": ("mlm", {"data.path": "{root}/hub_no_rows"}, "{root}/hub_no_rows has a split without rows"),
    "no-words": ("mlm", {"data.path": "{root}/wordless.csv"}, "the texts of {root}/wordless.csv hold no words: set "),
    "same-columns": ("sentiment", {"data.path": "{root}/good.csv", "data.label_column": "text"},
                     "text_column and label_column are both text: set them to different columns of {root}/good.csv"),
    "negative": ("sentiment", {"data.path": "{root}/negative.csv"},
                 "{root}/negative.csv: column label holds the labels -1, 0, 1: number the classes 0, 1, 2, ..."),
    "unseen": ("sentiment", {"data.path": "{root}/good.csv", "data.test_path": "{root}/unseen.csv"},
               "{root}/unseen.csv, row 21: label is '2', but the training split's labels are 0, 1: correct it"),
    "float": ("sentiment", {"data.path": "{root}/float.csv"},
              "{root}/float.csv: column label holds double values, but labels must be integers from 0 or names"),
    "null": ("sentiment", {"data.path": "{root}/null.csv"},
             "{root}/null.csv, row 21: label is missing: label the row or remove it"),
    "one-class": ("sentiment", {"data.path": "{root}/one_class.csv"},
                  "{root}/one_class.csv: column label knows only the class 0: a classifier needs 2 or more"),
    "latin-csv": ("mlm", {"data.path": "{root}/latin.csv"}, "{root}/latin.csv, line 22: not UTF-8: convert the file"),
    "latin-imdb": ("mlm", {"data.path": "{root}/aclImdb"}, "{root}/aclImdb/train/pos/0.txt, line 1: not UTF-8: "),
    "json": ("mlm", {"data.path": "{root}/broken.jsonl"}, "{root}/broken.jsonl, line 2: not valid JSON: Expecting ','"),
    "hub": ("mlm", {"data.path": "some/texts"}, "some/texts is neither a local path nor in the cache, and the hub "
            "cannot be reached (Cannot reach"),
    "hub-forms": ("mlm", {"data.path": "some/texts"}, "go online, or set path to a folder in the hub's layout, the "
                  "original aclImdb folder, a .csv, .jsonl, .json, .parquet file, or toy_reviews"),
    "tokenizer": ("mlm", {"data.tokenizer": "{root}/none.json"},
                  "tokenizer {root}/none.json does not exist: name a tokenizer.json file"),
}  # fmt: skip

_MLM, _CLASSIFIER = "{root}/runs/texts/mlm/model", "{root}/runs/texts/finetune/model"
_IMAGE_MODEL = "{root}/runs/images/image-classifier/model"


def _start(init_from: str, options: dict[str, Any], expected: str) -> Case:
    return "text-classifier", {"init_from": init_from, **options}, expected


INPUT_MODELS: dict[str, Case] = {
    "missing": _start("{root}/none", {}, "init_from {root}/none holds no model (config.json can't be read): name a "),
    "stage": _start("{root}/runs/texts/mlm", {}, "init_from {root}/runs/texts/mlm holds no model"),
    "missing-remote": _start("memory://x/y", {}, "init_from memory://x/y holds no model"),
    "scheme": _start("nope://x", {}, "init_from 'nope://x' cannot be opened (Protocol not known: nope)"),
    "image-model": _start(_IMAGE_MODEL, {}, f"init_from {_IMAGE_MODEL} is an image model: name the model/ folder of "),
    "damaged": _start("{root}/damaged", {}, "{root}/damaged/model.safetensors was altered after it was written: write"),
    "encoder": _start(_MLM, {"encoder.num_latents": 3},
                      f"encoder.num_latents is 3, but the model in {_MLM} has 2: set encoder.num_latents to 2, or "),
    "decoder": _start(_CLASSIFIER, {"decoder.num_output_channels": 16},
                      f"decoder.num_output_channels is 16, but the model in {_CLASSIFIER} has null: set "),
    "length": _start(_MLM, {"data.max_seq_len": 32},
                     f"data.max_seq_len is 32, but the model in {_MLM} reads 16 tokens: set data.max_seq_len to 16"),
    "other-tokenizer": _start(_MLM, {"data.tokenizer": "{root}/tokenizer.json"},
                              "tokenizer {root}/tokenizer.json is not the tokenizer that the model was trained with: "),
    "vocabulary": _start(_MLM, {"data.vocab_size": 100},
                         "vocab_size is 100, but the given tokenizer has 200 tokens: set it to 200"),
    "classes": _start(_CLASSIFIER, {"data.path": "{root}/three_classes.csv"},
                      f"three_classes.csv has 3 classes, but the classifier in {_CLASSIFIER} tells 2 apart: start "),
}  # fmt: skip


def _images(options: dict[str, Any], expected: str) -> Case:
    return "image-classifier", options, expected


IMAGE_DATA: dict[str, Case] = {
    "missing-images": _images({"data.path": "./none"}, "./none does not exist: correct the path"),
    "crop": _images({"data.random_crop": 9}, "random_crop is 9, but the images of digits are 8 x 8: crop less"),
    "no-images": _images({"data.path": "{root}/nothing"},
                         "set path to a folder in the hub's layout, of class folders or of idx files, or digits"),
    "image-file": _images({"data.path": "{root}/good.csv"},
                          "{root}/good.csv is a file: give a folder of class folders, of idx files or in the hub's "),
    "idx": _images({"data.path": "{root}/idx"},
                   "{root}/idx/train-images-idx3-ubyte is not an idx file of unsigned bytes with 3 axes: fetch it "),
    "idx-part": _images({"data.path": "{root}/idx_part"}, "{root}/idx_part lacks the file train-labels-idx1-ubyte (or"),
    "image": _images({"data.path": "{root}/class_folders"}, "class_folders/b/1.png cannot be read as an image ("),
    "image-column": _images({"data.path": "{root}/hub"},
                            "{root}/hub, split train has no column image: set image_column to one of text, label"),
    "hub-images": _images({"data.path": "some/images"}, "cannot be reached (Cannot reach https://huggingface.co/api/"),
    "hub-images-forms": _images({"data.path": "some/images"}, "go online, or set path to a folder in the hub's layout, "
                                "of class folders or of idx files, or digits"),
}  # fmt: skip

CASES = COMMAND_LINE | RUNS | TEXT_DATA | INPUT_MODELS | IMAGE_DATA
