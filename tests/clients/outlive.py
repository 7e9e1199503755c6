"""redis-py while its agent goes and comes back, told nothing of it: one connection, and another for each call of a second kind.
Prints who serves, each time that it changes; ends when it was one, another, and the first one again."""

import json
import sys

import redis

CALL = json.dumps({"action": "/service/demo", "params": {"m": "echo", "args": ["x"]}})

# No retries: what fails is to be seen.
kept = redis.Redis("127.0.0.1", 13000, socket_timeout=10, retry=None)
errors = calls = 0
seen = []
while len(seen) < 3:
    calls += 1
    try:
        answer = json.loads(kept.get(CALL))
        if answer["ec"] != 0:
            sys.exit(f"an answer with an error: {answer}")
        name = answer["result"]
    except redis.ConnectionError as error:
        errors += 1
        continue
    if not seen or seen[-1] != name:
        seen.append(name)
        print(name, flush=True)
        # It stays where it is until it connects anew.
        kept.connection_pool.disconnect()
    elif len(seen) == 2:
        kept.connection_pool.disconnect()
print(json.dumps({"calls": calls, "errors": errors}))
