"""Exports a model for ONNX Runtime and OpenVINO as sentence-transformers documents it, once.

    build/rivals/bin/python -m benchmarks.rivals.exports --model DIR --folder DIR
        --texts FILE --exports onnx,onnx:qint8,openvino,openvino:qint8

In: a model directory, and a JSON list of texts to calibrate OpenVINO's 8 bits with. Out: the files
of EXPORTS in the folder, beside tokenizer and pooling; a file that exists is left as it is. Cost:
seconds each, and one to two minutes for OpenVINO's 8 bits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.backend import (
    export_dynamic_quantized_onnx_model,
    export_optimized_onnx_model,
    export_static_quantized_openvino_model,
)

from benchmarks.rivals.encoders import EXPORTS, quantization


def save(loaded: SentenceTransformer, folder: Path) -> None:
    """With one limit of tokens: fastembed takes the smaller of two, which may be a leftover."""
    loaded.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    limits = dict.fromkeys(("max_length", "model_max_length"), loaded.max_seq_length)
    path.write_text(json.dumps({**json.loads(path.read_text()), **limits}))


def export_onnx(model: Path, folder: Path, names: list[str]) -> None:
    kwargs = {"provider": "CPUExecutionProvider"}
    loaded = SentenceTransformer(str(model), device="cpu", backend="onnx", model_kwargs=kwargs)
    save(loaded, folder)
    if "onnx" in names:
        export_optimized_onnx_model(loaded, "O3", str(folder))
    if "onnx:qint8" in names:
        export_dynamic_quantized_onnx_model(loaded, quantization(), str(folder))


def export_openvino(model: Path, folder: Path, names: list[str], texts: list[str]) -> None:
    loaded: Any = SentenceTransformer(str(model), device="cpu", backend="openvino")
    save(loaded, folder)
    if "openvino:qint8" in names:
        with tempfile.TemporaryDirectory() as calibration:
            lines = (json.dumps({"text": text}) for text in texts)
            (Path(calibration) / "train.jsonl").write_text("\n".join(lines))
            export_static_quantized_openvino_model(
                loaded,
                None,
                str(folder),
                dataset_name=calibration,
                dataset_config_name="default",
                dataset_split="train",
                column_name="text",
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in ("--model", "--folder", "--texts"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--exports", required=True)
    options = parser.parse_args()
    missing = [
        name for name in options.exports.split(",") if not (options.folder / EXPORTS[name]).exists()
    ]
    onnx = [name for name in missing if name.startswith("onnx")]
    openvino = [name for name in missing if name.startswith("openvino")]
    if onnx:
        export_onnx(options.model, options.folder, onnx)
    if openvino:
        export_openvino(
            options.model, options.folder, openvino, json.loads(options.texts.read_text())
        )


if __name__ == "__main__":
    main()
