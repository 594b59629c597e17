"""The real `anthropic` client against `origin.py`: messages, streams, tools, thinking, errors, retries, timeouts."""
import asyncio
import json
import sys

import anthropic

BASE, KEY = sys.argv[1].removesuffix("/v1"), sys.argv[2]
client = anthropic.Anthropic(base_url=BASE, api_key="sk-ant-test", max_retries=2)
options = {"max_tokens": 256, "messages": [{"role": "user", "content": "Hello?"}]}
tool = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"location": {"type": "string"}}}}
seen = {}


def failure(call):
    try:
        return ["nothing", str(call())]
    except anthropic.APIError as error:
        status = getattr(error, "status_code", None)
        return [type(error).__name__, status, error.message if status else None]


def blocks(message):
    return [block.to_dict() for block in message.content]


message = client.messages.create(model="m", **options)
assert message.content[0].text == "Grüezi, 世界 🦀!" and message._request_id == "req_1", message
seen["message"] = [blocks(message), message.stop_reason, message.usage.output_tokens]
thinking = {"type": "enabled", "budget_tokens": 1024}
with client.messages.stream(model="m", tools=[tool], thinking=thinking, **{**options, "max_tokens": 2048}) as stream:
    seen["events"] = [event.type for event in stream]
    final = stream.get_final_message()
assert [block.type for block in final.content] == ["thinking", "text", "tool_use"], final
assert final.content[2].input == {"location": "San Francisco"} and final.stop_reason == "tool_use", final
seen["stream"] = blocks(final)
seen["tokens"] = client.messages.count_tokens(model="m", messages=options["messages"]).input_tokens

seen["errors"] = {status: failure(lambda: client.messages.create(model=f"fail:{status}", **options))
                  for status in (400, 401, 403, 404, 413, 422, 429, 500, 529)}
assert seen["errors"][529][0] == "OverloadedError" and seen["errors"][429][0] == "RateLimitError", seen
for status in (429, 503, 529):
    raw = client.messages.with_raw_response.create(model=f"flaky:{status}:{KEY}", **options)
    assert raw.retries_taken == 1, (status, raw.retries_taken)
    seen[f"retried {status}"] = blocks(raw.parse())
hasty = client.with_options(timeout=0.3, max_retries=0)
seen["timeout"] = failure(lambda: hasty.messages.create(model="slow", **options))
assert seen["timeout"][0] == "APITimeoutError", seen


def streamed(model):
    text = []

    def read():
        with client.messages.stream(model=model, **options) as stream:
            text.extend(stream.text_stream)

    try:
        ended = failure(read)
    except Exception as error:
        ended = [type(error).__name__]
    return "".join(text), ended


seen["streams"] = {model: streamed(model) for model in ("m", "broken", "cut")}
assert seen["streams"]["broken"][1][0] != "nothing" and seen["streams"]["cut"][1][0] != "nothing", seen


async def at_once():
    async with anthropic.AsyncAnthropic(base_url=BASE, api_key="sk-ant-test") as asynchronous:
        several = (asynchronous.messages.create(model=f"m{at}", **options) for at in range(8))
        return [message.model for message in await asyncio.gather(*several)]


seen["at once"] = asyncio.run(at_once())
print(json.dumps(seen))
