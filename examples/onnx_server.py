"""A model over HTTP: exported to ONNX, computed by onnxruntime.

python examples/onnx_server.py --weights=torchvision:vgg16 --port=8000
curl --data-binary @photo.jpg http://127.0.0.1:8000
"""

import json
import tempfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import onnxruntime

import vgg_jax
from vgg_jax.commands import cli
from vgg_jax.data.crops import rescaled
from vgg_jax.evaluation.conversion import ConvertRequest, convert
from vgg_jax.runtime.exceptions import UserError

MOST_BYTES = 2**26

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights: a file, a run or a name.", required=True)
_PORT = flags.DEFINE_integer("port", 8000, "Port of this machine; 0 for a free one.", lower_bound=0, upper_bound=65535)


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--weights=vgg16.safetensors")
    model = vgg_jax.load(_WEIGHTS.value)
    if not model.num_classes:
        raise UserError(f"--weights={_WEIGHTS.value} has no classifier; give a whole model.")
    names, scale = model.class_titles or model.class_names, model.training_scales[0]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "model.onnx")
        convert(ConvertRequest(_WEIGHTS.value, str(file), to="onnx"))
        session = onnxruntime.InferenceSession(file)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Answers an image file with its five most likely classes and their probabilities, as JSON."""
            length = int(self.headers.get("Content-Length", 0))
            try:
                if length > MOST_BYTES:
                    raise ValueError(f"{length:,} bytes are more than {MOST_BYTES:,}")
                image_HxWx3 = rescaled(self.rfile.read(length), scale)
            except ValueError as error:
                return self.send_error(400, explain=str(error))
            (probs,) = session.run(None, {"images": image_HxWx3[None]})[0]
            top = {names[k]: float(probs[k]) for k in probs.argsort()[::-1][:5]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(top).encode())

    server = HTTPServer(("127.0.0.1", _PORT.value), Handler)
    print(f"serving on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    cli.run(main, flags)
