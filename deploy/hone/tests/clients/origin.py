"""An origin for transport tests: it speaks the OpenAI and Anthropic protocols correctly and answers from templates.

It is no model. The engine of this repository serves chat completions and legacy completions; for the other protocols,
and for faults that a healthy engine does not show, clients talk to this. The model name in a request says how to behave:
  fail:STATUS             that error, always
  flaky:STATUS:KEY        that error for the first request with KEY, then an answer
  slow                    an answer after five seconds
  cut                     a stream that breaks off
  broken                  a stream that reports an error
Anything else is answered. Prints its base URL, then serves until its standard input ends.
"""
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TEXT = "Grüezi, 世界 🦀!"
PIECES = ["Grüe", "zi, ", "世界", " 🦀", "!"]
CALL = {"location": "San Francisco"}
flaky, responses, lock = set(), {}, threading.Lock()


class Refused(Exception):
    def __init__(self, status, message, headers=()):
        self.status, self.message, self.headers = status, message, headers


def behave(model):
    """Raises what the model name asks for; returns how the stream goes on."""
    kind, *rest = str(model).split(":")
    if kind == "fail":
        raise Refused(int(rest[0]), f"refused with {rest[0]}", [("x-should-retry", "false")])
    if kind == "flaky":
        with lock:
            known, _ = model in flaky, flaky.add(model)
        if not known:
            raise Refused(int(rest[0]), "once", [("retry-after-ms", "20"), ("x-ratelimit-remaining-requests", "0")])
    if kind == "slow":
        time.sleep(5)
    return kind


def chat(body):
    if not body.get("model"):
        raise Refused(400, "model is required")
    how, base = behave(body["model"]), {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    calls, finish = [], "stop"
    if body.get("tools"):
        function = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(CALL)}
        calls, finish = [{"id": "call_1", "type": "function", "function": function}], "tool_calls"
    if not body.get("stream"):
        message = {"role": "assistant", "content": None if calls else TEXT, "refusal": None, "annotations": []}
        message |= {"tool_calls": calls} if calls else {}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return how, {**base, "object": "chat.completion", "choices": [choice], "usage": usage}

    def events():
        def chunk(delta, finish=None):
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return None, {**base, "object": "chat.completion.chunk", "choices": [choice]}

        yield chunk({"role": "assistant", "content": ""})
        for piece in [] if calls else PIECES:
            yield chunk({"content": piece})
        for call in calls:
            text = call["function"]["arguments"]
            yield chunk({"tool_calls": [{"index": 0, **call, "function": {**call["function"], "arguments": ""}}]})
            for part in (text[:9], text[9:]):
                yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
        if how == "broken":
            yield None, {"error": {"message": "out of memory", "type": "server_error", "code": "oom"}}
            return
        yield chunk({}, finish)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield None, {**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        yield None, "[DONE]"

    return how, events()


def messages(body):
    for key in ("model", "max_tokens", "messages"):
        if key not in body:
            raise Refused(400, f"{key}: Field required")
    how, blocks = behave(body["model"]), []
    if (body.get("thinking") or {}).get("type") == "enabled":
        blocks.append({"type": "thinking", "thinking": "15 times 37", "signature": "EqQBCkYIBxgC"})
    blocks.append({"type": "text", "text": TEXT, "citations": None})
    if body.get("tools"):
        blocks.append({"type": "tool_use", "id": "toolu_1", "name": body["tools"][0]["name"], "input": CALL,
                       "caller": {"type": "direct"}})
    stop = "tool_use" if body.get("tools") else "end_turn"
    usage = {"input_tokens": 5, "output_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
             "cache_creation": None, "inference_geo": None, "output_tokens_details": None, "server_tool_use": None,
             "service_tier": "standard"}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": blocks,
               "stop_reason": stop, "stop_sequence": None, "stop_details": None, "container": None,
               "usage": usage}
    return how, message if not body.get("stream") else named(message_events(message, how))


def message_events(message, how):
    yield {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    for at, block in enumerate(message["content"]):
        kind = block["type"]
        empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}[kind]
        yield {"type": "content_block_start", "index": at, "content_block": {**block, **empty}}
        yield {"type": "ping"}
        for delta in {
            "text": [{"type": "text_delta", "text": piece} for piece in PIECES],
            "thinking": [{"type": "thinking_delta", "thinking": block.get("thinking")},
                         {"type": "signature_delta", "signature": block.get("signature")}],
            "tool_use": [{"type": "input_json_delta", "partial_json": part}
                         for part in ("", json.dumps(CALL)[:9], json.dumps(CALL)[9:])],
        }[kind]:
            yield {"type": "content_block_delta", "index": at, "delta": delta}
        if how == "broken":
            yield {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            return
        yield {"type": "content_block_stop", "index": at}
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}
    yield {"type": "message_stop"}


def named(events):
    return ((event["type"], event) for event in events)


def respond(body):
    if not body.get("model"):
        raise Refused(400, "model is required")
    how, before = behave(body["model"]), body.get("previous_response_id")
    if before and before not in responses:
        raise Refused(404, f"Previous response with id '{before}' not found.")
    part = {"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}
    output = [{"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}]
    if body.get("tools"):
        output = [{"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1",
                   "name": body["tools"][0]["name"], "arguments": json.dumps(CALL)}]
    usage = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12,
             "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    tools = [{"strict": None, "description": None, "parameters": None, **tool} for tool in body.get("tools") or []]
    response = {
        "id": f"resp_{len(responses) + 1 if body.get('store') else 0}", "object": "response", "created_at": 1,
        "completed_at": 2, "status": "completed", "incomplete_details": None, "model": body["model"],
        "previous_response_id": before, "instructions": body.get("instructions"), "output": output, "error": None,
        "tools": tools, "tool_choice": body.get("tool_choice", "auto"), "truncation": "disabled",
        "parallel_tool_calls": True, "text": {"format": {"type": "text"}}, "top_p": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "top_logprobs": 0, "temperature": 1.0,
        "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
        "usage": usage, "max_output_tokens": None, "max_tool_calls": None,
        "store": bool(body.get("store")), "background": False, "service_tier": "default", "metadata": {},
        "safety_identifier": None, "prompt_cache_key": None,
    }
    if body.get("store"):
        responses[response["id"]] = response
    return how, response if not body.get("stream") else named(response_events(response, how))


def response_events(response, how):
    number = iter(range(1000))

    def event(kind, **fields):
        return {"type": f"response.{kind}", "sequence_number": next(number), **fields}

    early = {**response, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    yield event("created", response=early)
    yield event("in_progress", response=early)
    for at, item in enumerate(response["output"]):
        where = {"item_id": item["id"], "output_index": at}
        if item["type"] == "function_call":
            yield event("output_item.added", output_index=at, item={**item, "arguments": "", "status": "in_progress"})
            for part in (item["arguments"][:9], item["arguments"][9:]):
                yield event("function_call_arguments.delta", **where, delta=part)
            yield event("function_call_arguments.done", **where, arguments=item["arguments"])
        else:
            part = item["content"][0]
            yield event("output_item.added", output_index=at, item={**item, "content": [], "status": "in_progress"})
            yield event("content_part.added", **where, content_index=0, part={**part, "text": ""})
            for piece in PIECES:
                yield event("output_text.delta", **where, content_index=0, delta=piece, logprobs=[])
            if how == "broken":
                failed = {**early, "status": "failed", "error": {"code": "server_error", "message": "out of memory"}}
                yield event("failed", response=failed)
                return
            yield event("output_text.done", **where, content_index=0, text=part["text"], logprobs=[])
            yield event("content_part.done", **where, content_index=0, part=part)
        yield event("output_item.done", output_index=at, item=item)
    yield event("completed", response=response)


def embeddings(body):
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [{"object": "embedding", "index": at, "embedding": [len(text) / 8, 0.5]} for at, text in enumerate(texts)]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return "", {"object": "list", "model": body["model"], "data": data, "usage": usage}


POSTS = {
    "/v1/chat/completions": chat, "/v1/messages": messages, "/v1/responses": respond, "/v1/embeddings": embeddings,
    "/v1/messages/count_tokens": lambda body: ("", {"input_tokens": len(json.dumps(body["messages"])) // 4}),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def reply(self, status, value, headers=()):
        body = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        for name, text in [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]:
            self.send_header(name, text)
        self.send_header("x-request-id", "req_1")
        self.send_header("request-id", "req_1")
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, refused):
        kind = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
                529: "overloaded_error"}.get(refused.status, "api_error")
        error = {"type": kind, "message": refused.message}
        if self.path.startswith("/v1/messages"):
            self.reply(refused.status, {"type": "error", "error": error, "request_id": "req_1"}, refused.headers)
        else:
            self.reply(refused.status, {"error": {**error, "param": None, "code": kind}}, refused.headers)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        serve = POSTS.get(self.path.split("?")[0])
        try:
            if serve is None:
                raise Refused(404, "no such path")
            how, answer = serve(json.loads(body))
        except Refused as refused:
            return self.refuse(refused)
        if isinstance(answer, dict):
            return self.reply(200, answer, [("x-ratelimit-limit-requests", "60"), ("openai-processing-ms", "7")])
        self.send_response(200)
        for name, text in [("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache"),
                           ("Transfer-Encoding", "chunked"), ("x-request-id", "req_1"), ("request-id", "req_1")]:
            self.send_header(name, text)
        self.end_headers()
        for at, (name, data) in enumerate(answer):
            if how == "cut" and at == 4:
                self.close_connection = True
                return
            text = f"event: {name}\n" if name else ""
            text += f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n"
            raw = text.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        if self.path == "/v1/models":
            model = {"id": "test", "object": "model", "created": 1, "owned_by": "test"}
            return self.reply(200, {"object": "list", "data": [model]})
        response = responses.get(self.path.rsplit("/", 1)[-1])
        return self.reply(200, response) if response else self.refuse(Refused(404, "no such thing"))

    def do_DELETE(self):
        gone = responses.pop(self.path.rsplit("/", 1)[-1], None)
        self.reply(200 if gone else 404, {"id": (gone or {}).get("id"), "object": "response", "deleted": bool(gone)})


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # Clients that leave are what some tests are about.
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
