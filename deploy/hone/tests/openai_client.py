"""The real `openai` client, unchanged but for base_url: chat, streaming, tools, errors. Ends with "ok" or a traceback."""
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="sk-test", max_retries=0)
model = client.models.list().data[0].id
question = [{"role": "user", "content": "What is the capital of France?"}]
options = {"model": model, "messages": question, "max_tokens": 16, "temperature": 0}

whole = client.chat.completions.create(**options)
assert "Paris" in whole.choices[0].message.content, whole
assert whole.choices[0].finish_reason == "stop", whole
assert whole.usage.completion_tokens > 0, whole

text, usage, finish = "", None, None
stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
for chunk in stream:
    if chunk.choices:
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    usage = chunk.usage or usage
assert text == whole.choices[0].message.content, (text, whole)
assert finish == "stop" and usage.completion_tokens == whole.usage.completion_tokens, (finish, usage)

several = client.chat.completions.create(**{**options, "temperature": 1, "n": 2})
assert [choice.index for choice in several.choices] == [0, 1], several

legacy = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
assert legacy.choices[0].text, legacy

# A 135M model seldom calls a tool well; what counts is that a request with tools is answered in the protocol's shape.
tool = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
called = client.chat.completions.create(**options, tools=[tool])
message = called.choices[0].message
assert message.content or message.tool_calls, called
answered = question + [
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\":\"Paris\"}"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "{\"celsius\": 21}"},
]
after = client.chat.completions.create(**{**options, "messages": answered}, tools=[tool])
assert after.choices[0].message is not None, after

try:
    client.chat.completions.create(**{**options, "model": "no-such-model"})
    raise SystemExit("an unknown model was accepted")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
try:
    client.chat.completions.create(**{**options, "max_tokens": -3})
    raise SystemExit("max_tokens -3 was accepted")
except openai.BadRequestError as error:
    assert "max_tokens" in str(error), error
print("ok")
