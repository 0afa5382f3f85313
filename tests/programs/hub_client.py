"""Fetches the hub ids given line by line on stdin; answers each with a line of JSON."""

import json
import sys

from segzoo import SegzooError
from segzoo.weights import hub

for line in sys.stdin:
    try:
        path, pinned = hub.fetch(hub.HubId.parse(line.strip()))
        answer = {"path": str(path), "id": str(pinned)}
    except SegzooError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
