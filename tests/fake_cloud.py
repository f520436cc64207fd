"""A program that stands for gcloud, sbatch, srun, ... on the PATH: writes down how it was called and plays its part.

    python -S tests/fake_cloud.py PROGRAM ARGUMENT...

The directory $FAKE_CLOUD holds `script.json`, {pattern: [answer, ...]}. The first pattern that "PROGRAM ARGUMENT..."
matches gives the answers: one per call, and the last one for all further calls. A call without a pattern succeeds in
silence. An answer may have these keys:

* `status`, `out`, `err`: the exit status and the text on both streams;
* `files`: {name: text}, written into the directory that is the last argument;
* `shell`: a command to run instead, with the arguments.

Every call is a line of `calls.jsonl`.
"""

import fcntl
import json
import os
import re
import sys


def main() -> int:
    directory = os.environ["FAKE_CLOUD"]
    arguments = sys.argv[1:]
    line = " ".join(arguments)
    with open(os.path.join(directory, "script.json")) as file:
        script = json.load(file)
    pattern = next((pattern for pattern in script if re.search(pattern, line)), None)
    with open(os.path.join(directory, "calls.jsonl"), "a+") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)  # workers are set up at the same time
        calls.seek(0)
        seen = sum(json.loads(call)["pattern"] == pattern for call in calls)
        answers = script.get(pattern, [{}])
        answer = answers[min(seen, len(answers) - 1)]
        calls.write(json.dumps({"pattern": pattern, "call": arguments, "status": answer.get("status", 0)}) + "\n")
    for name, text in answer.get("files", {}).items():
        with open(os.path.join(arguments[-1], name), "w") as file:
            file.write(text)
    sys.stdout.write(answer.get("out", ""))
    sys.stderr.write(answer.get("err", ""))
    sys.stdout.flush()
    if "shell" in answer:
        os.execvp("bash", ["bash", "-c", answer["shell"], *arguments])
    return answer.get("status", 0)


sys.exit(main())
