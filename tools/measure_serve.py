"""What a request costs: does a batch change results, how long one takes, how much memory large images need.

    python -m tools.measure_serve [--megapixels 50] [--at-once 4] [--requests 20]

Starts `diffseg serve` on the example images (Linux: memory is read from /proc). Prints a table; writes
nothing.
"""

import argparse
import io
import json
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_cli.assembly import load_segmenter

BIRD = Path("examples/bird")
QUERIES = [
    Path("examples", name) for name in ("bird/query.jpg", "bird/query2.jpg", "dog/query.jpg", "cat/query.jpg")
]
FILES = {
    name: (BIRD / file).read_bytes()
    for name, file in (("support", "support.jpg"), ("mask", "support_mask.png"))
}


def compare_batches() -> None:
    """Four images alone and together."""
    segmenter = load_segmenter("compact", device="cpu")
    support = segmenter.encode_support([(BIRD / "support.jpg", BIRD / "support_mask.png")])
    together = segmenter.segment_encoded(segmenter.encode_queries(QUERIES), support)
    alone = [segmenter.segment(query, support) for query in QUERIES]
    for query, a, b in zip(QUERIES, together, alone, strict=True):
        off = np.abs(a.probability - b.probability)
        moved = int((a.mask != b.mask).sum())
        print(
            f"{query}: {(off > 0).mean():.0%} of the pixels differ, by {off.max():.1e}; {moved} in the mask"
        )


def enlarged(megapixels: float) -> bytes:
    image = Image.open(QUERIES[0])
    scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    stream = io.BytesIO()
    image.resize((int(image.width * scale), int(image.height * scale))).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def multipart(address: str, files: dict[str, bytes]) -> urllib.request.Request:
    parts = [
        f'--part\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode()
        + content
        for name, content in files.items()
    ]
    body = b"\r\n".join([*parts, b"--part--\r\n"])
    return urllib.request.Request(address, body, {"Content-Type": "multipart/form-data; boundary=part"})


def peak_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=50)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--requests", type=int, default=20)
    options = parser.parse_args()
    compare_batches()
    command = [sys.executable, "-m", "diffseg_cli", "serve", "--port", "0", "--json", "--max-seconds", "600"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    address = json.loads(server.stdout.readline())["url"] + "v1/segment"

    def ask(query: bytes) -> float:
        start = time.perf_counter()
        urllib.request.urlopen(multipart(address, {"query": query, **FILES})).read()
        return time.perf_counter() - start

    small, large = QUERIES[0].read_bytes(), enlarged(options.megapixels)
    ask(small)
    usual = np.median([ask(small) for _ in range(options.requests)])
    print(f"{usual:.2f} s a request; {peak_mb(server.pid):.0f} MB")
    print(f"{ask(large):.1f} s with {options.megapixels:g} megapixels; {peak_mb(server.pid):.0f} MB")
    with ThreadPoolExecutor(options.at_once) as pool:
        slowest = max(pool.map(ask, [large] * options.at_once))
    print(f"{options.at_once} of them at once: the last after {slowest:.1f} s; {peak_mb(server.pid):.0f} MB")
    server.send_signal(signal.SIGINT)
    server.wait()


if __name__ == "__main__":
    main()
