"""gRPC's own implementation on both sides of a waypoint: rpc.py serve ADDRESS, rpc.py ask ADDRESS.

Messages are bytes as they are: what is tried is calls, streams, deadlines, statuses and metadata, not protobuf.
"""

import concurrent.futures
import queue
import sys
import threading
import time

import grpc

cancelled = threading.Event()


def unary(message, context):
    sent = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", sent.get("x-asked", "")),))
    context.set_trailing_metadata((("x-trailing", "yes"), ("x-bytes-bin", b"\x00\xff")))
    return message


def both(messages, context):
    for message in messages:
        yield message[::-1]


def fails(message, context):
    context.set_trailing_metadata((("x-why", "asked"),))
    code = next(code for code in grpc.StatusCode if code.value[0] == int(message))
    context.abort(code, "as asked: ü%")


def sleeps(message, context):
    context.add_callback(cancelled.set)
    time.sleep(3)
    return b"late"


def was_cancelled(message, context):
    return b"yes" if cancelled.wait(5) else b"no"


def serve(address):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(32))
    plain = {"Unary": unary, "Fails": fails, "Sleeps": sleeps, "WasCancelled": was_cancelled, "Denied": unary}
    handlers = {name: grpc.unary_unary_rpc_method_handler(function) for name, function in plain.items()}
    handlers["Both"] = grpc.stream_stream_rpc_method_handler(both)
    handlers["Up"] = grpc.stream_unary_rpc_method_handler(lambda all, _: str(sum(map(len, all))).encode())
    handlers["Down"] = grpc.unary_stream_rpc_method_handler(lambda count, _: (b"x" * 10_000 for _ in range(int(count))))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    server.add_insecure_port(address)
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def check(what, is_so, *facts):
    if not is_so:
        sys.exit(f"{what}: {facts}")


def refused(call, *arguments, **named):
    try:
        answer = call(*arguments, **named)
    except grpc.RpcError as error:
        return error
    sys.exit(f"not refused: {answer}")


def ask(address):
    channel = grpc.insecure_channel(address)
    method = lambda name: channel.unary_unary(f"/test.Echo/{name}")

    answer, call = method("Unary").with_call(b"hello", timeout=10, metadata=(("x-asked", "this"),))
    check("unary", answer == b"hello", answer)
    check("initial metadata", ("x-initial", "this") in [(m.key, m.value) for m in call.initial_metadata()])
    trailing = {m.key: m.value for m in call.trailing_metadata()}
    check("trailing metadata", trailing.get("x-trailing") == "yes" and trailing.get("x-bytes-bin") == b"\x00\xff", trailing)

    # One message after the other: each is answered before the next is sent.
    sent = queue.SimpleQueue()
    answers = channel.stream_stream("/test.Echo/Both")(iter(sent.get, None), timeout=20)
    for number in range(200):
        message = f"message {number}".encode()
        sent.put(message)
        check("both ways", next(answers) == message[::-1], number)
    sent.put(None)
    check("its end", list(answers) == [] and answers.code() == grpc.StatusCode.OK)

    total = channel.stream_unary("/test.Echo/Up")((b"x" * 100_000 for _ in range(100)), timeout=30)
    check("upwards", total == b"10000000", total)
    got = sum(len(message) for message in channel.unary_stream("/test.Echo/Down")(b"1000", timeout=30))
    check("downwards", got == 10_000_000, got)
    futures = [method("Unary").future(str(number).encode(), timeout=20) for number in range(300)]
    check("300 at a time", [future.result() for future in futures] == [str(number).encode() for number in range(300)])

    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            error = refused(method("Fails"), str(code.value[0]).encode(), timeout=10)
            check("status", error.code() is code and error.details() == "as asked: ü%", code, error)
            check("its metadata", ("x-why", "asked") in [(m.key, m.value) for m in error.trailing_metadata()], code)

    began = time.monotonic()
    error = refused(method("Sleeps"), b"", timeout=0.5)
    check("deadline", error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() - began < 2, error)
    check("the server knows", method("WasCancelled")(b"", timeout=10) == b"yes")

    # The waypoint's own answers.
    for name, code in (("Denied", "PERMISSION_DENIED"), ("Nowhere", "UNIMPLEMENTED"), ("Down/Endpoint", "UNAVAILABLE")):
        error = refused(channel.unary_unary(f"/test.Echo/{name}"), b"", timeout=10)
        check(name, error.code().name == code, error)
    print(f"grpcio {grpc.__version__}: calls, streams, statuses, metadata, deadlines")


{"serve": serve, "ask": ask}[sys.argv[1]](sys.argv[2])
