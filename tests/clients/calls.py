"""redis-py against an agent. Arguments: PORT. Ends with 1 at the first thing that is not as it should be."""

import json
import sys
import threading

import redis


def envelope(method, *args, service="/service/demo"):
    return json.dumps({"action": service, "params": {"m": method, "args": list(args)}})


def result(reply):
    return json.loads(reply)["result"]


def expect(what, expected, got):
    if expected != got:
        sys.exit(f"{what}: expected {expected!r}, got {got!r}")
    print("ok", what)


def connect(port, protocol, **options):
    return redis.Redis("127.0.0.1", port, protocol=protocol, socket_timeout=10, **options)


def plain(client):
    expect("ping", True, client.ping())
    expect("echo", b"text", client.echo("text"))
    expect("get", "hi", result(client.get(envelope("echo", "hi"))))
    expect("get of UTF-8", "中文 😀", result(client.get(envelope("echo", "中文 😀"))))
    expect("an error of the service", 502, json.loads(client.get(envelope("missing")))["ec"])
    unknown = envelope("echo", "x", service="/service/unknown")
    expect("an error of the mesh", 501, json.loads(client.get(unknown))["ec"])
    expect("info", True, "redis_version" in client.info())


def many(client):
    keys = [envelope("echo", f"key {i}") for i in range(20)]
    texts = [f"key {i}" for i in range(20)]
    expect("mget", texts, [result(reply) for reply in client.mget(keys)])
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.get(key)
    pipe.ping()
    replies = pipe.execute()
    expect("pipeline", texts, [result(reply) for reply in replies[:-1]])
    expect("the pipeline's last", True, replies[-1])


def errors(client):
    for what, call in [
        ("set", lambda: client.set("key", "value")),
        ("a transaction", lambda: client.pipeline(transaction=True).get(envelope("nop")).execute()),
        ("nonsense", lambda: client.execute_command("NO_SUCH", "a", "b")),
    ]:
        try:
            call()
        except redis.ResponseError as error:
            expect(f"{what} is refused", True, "unknown command" in str(error).lower())
        else:
            sys.exit(f"{what}: expected an error")
        expect(f"served on after {what}", "still", result(client.get(envelope("echo", "still"))))


def threads(port, protocol):
    pool = redis.BlockingConnectionPool(host="127.0.0.1", port=port, protocol=protocol, max_connections=4, timeout=10)
    client, wrong = redis.Redis(connection_pool=pool), []

    def run(number):
        for i in range(50):
            text = f"{number}-{i}"
            if result(client.get(envelope("echo", text))) != text:
                wrong.append(text)

    running = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    expect("8 threads on 4 connections", [], wrong)


def main(port):
    for protocol in (2, 3):
        print("RESP", protocol)
        client = connect(port, protocol, client_name="python-app", health_check_interval=1, db=0)
        plain(client)
        name = client.client_getname()
        expect("client_name", "python-app", name if isinstance(name, str) else name.decode())
        many(client)
        errors(client)
        threads(port, protocol)
    expect("username and password", True, connect(port, 3, username="user", password="secret").ping())
    expect("a password", True, connect(port, 2, password="secret").ping())
    expect("one connection", True, connect(port, 2, single_connection_client=True).ping())


main(int(sys.argv[1]))
