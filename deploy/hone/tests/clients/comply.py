"""`llm-comply` with its sampling taken out, so that two runs differ only if what they talk to differs.

The suite's requests say nothing about temperature or length; a real model would answer each run differently, and at
length. Arguments: the suite's own. Prints its JSON without the durations.
"""
import contextlib
import io
import json

printed = io.StringIO()
with contextlib.redirect_stdout(printed):  # The suite binds its output when it is imported.
    from llm_comply import cli, runner

ask = runner.make_request


def greedy(config, endpoint, body, streaming=False):
    if endpoint == "/chat/completions":
        body = {"temperature": 0, "max_tokens": 24, **body}
    return ask(config, endpoint, body, streaming=streaming)


runner.make_request = greedy
with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
    cli.main()
report = json.loads(printed.getvalue())
for result in report["results"]:
    del result["duration_ms"]
print(json.dumps(report))
