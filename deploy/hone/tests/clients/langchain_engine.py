"""`langchain-openai` against the real engine: invoke, stream, batch, tools, errors. Prints what it saw as JSON."""
import asyncio
import json
import sys

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI

BASE, MODEL = sys.argv[1], openai.OpenAI(base_url=sys.argv[1], api_key="x").models.list().data[0].id
chat = ChatOpenAI(base_url=BASE, api_key="sk-test", model=MODEL, temperature=0, max_tokens=16, max_retries=0,
                  stream_usage=True)
history = [SystemMessage("Answer in one word."), HumanMessage("What is the capital of France?")]
seen = {}

answer = chat.invoke(history)
assert answer.content and answer.usage_metadata["output_tokens"] > 0, answer
seen["invoke"] = [answer.content, answer.usage_metadata["output_tokens"], answer.response_metadata["finish_reason"]]
streamed = None
for chunk in chat.stream(history):
    streamed = chunk if streamed is None else streamed + chunk
assert streamed.content == answer.content, (streamed, answer)
seen["stream"] = [streamed.content, streamed.usage_metadata["output_tokens"]]
seen["batch"] = [message.content for message in chat.batch([f"Name a colour, number {at}." for at in range(3)])]
tool = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
    "additionalProperties": False}}}
forced = chat.bind_tools([tool], tool_choice="required").bind(max_tokens=40)
called = forced.invoke([HumanMessage("What is the weather in Paris?")])
assert called.tool_calls[0]["name"] == "get_weather", called
seen["call"] = called.tool_calls[0]["args"]
told = [HumanMessage("What is the weather in Paris?"),
        AIMessage("", tool_calls=[{"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1"}]),
        ToolMessage("21 degrees", tool_call_id="call_1")]
seen["after the tool"] = chat.invoke(told).content
seen["asynchronous"] = asyncio.run(chat.ainvoke(history)).content
try:
    ChatOpenAI(base_url=BASE, api_key="sk-test", model="no-such-model", max_retries=0).invoke("x")
    raise SystemExit("an unknown model was accepted")
except openai.NotFoundError as error:
    seen["error"] = [error.code, error.status_code]
print(json.dumps(seen))
