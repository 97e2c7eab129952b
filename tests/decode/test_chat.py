"""Chat templates against transformers' apply_chat_template, and what an unsafe one comes to."""

import gc
import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lm.decode import chat
from lm.decode.chat import Chat
from lm.errors import UserError

CHATML = """{% for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
HEADERS = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|header|>system<|/header|>\\n\\n' + system + eos_token }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n' }}{% generation %}{{ message['content'] }}{% endgeneration %}
    {{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|/header|>' }}{% endif %}"""
BRACKETS = """{{ bos_token }}{% for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]
{%- else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}
{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}
{{- messages | tojson }}{{ {'a': 1, 'é': [1]} | tojson(indent=2) }}"""
TURNS = [
    [{"role": "user", "content": " Hello, <b>ärger</b>! "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"},
     {"role": "assistant", "content": "2"}, {"role": "user", "content": "And \"then\"?\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]  # fmt: skip
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def folder_of(tmp_path, template, **config):
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "chat_template": template} | config
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("reply", [True, False])
@pytest.mark.parametrize("template", [CHATML, HEADERS, BRACKETS], ids=["chatml", "headers", "brackets"])
def test_as_transformers(tmp_path, template, reply):
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **SPECIAL)
    ours, compared = Chat(folder_of(tmp_path, template)), 0
    for messages in TURNS:
        if template == BRACKETS and messages[0]["role"] == "system":
            with pytest.raises(UserError, match="roles must alternate"):
                ours.render(messages)
            continue
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
        assert ours.render(messages, reply=reply) == expected
        compared += 1
    assert compared >= 2


def test_where_templates_lie(tmp_path):
    one = TURNS[0]
    folder = folder_of(tmp_path, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}])
    assert Chat(folder).render(one) == "yes"
    (folder / "chat_template.json").write_text('{"chat_template": "json"}')
    assert Chat(folder).render(one) == "json"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} jinja")
    assert Chat(folder).render(one) == " Hello, <b>ärger</b>!  jinja"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "not safe"),
        ("{{ messages.append(1) }}", "not safe"),
        ("{{ (lambda: 0) }}", "no Jinja template"),
        ("{% for %}", "no Jinja template"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "not safe"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "not safe"),
        ("{{ undefined.field }}", "refuses this conversation"),
        ("{{ 1 / 0 }}", "refuses this conversation: division by zero"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself, too deeply"),
        ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "too deeply"),
        ("{{ messages[0].content.encode('utf-16').decode() }}", "refuses this conversation: 'utf-8' codec"),
        ("{{ 'a' * 10000000000 }}", "512 MB of memory"),
        ("{{ '%0999999999d' % 1 }}", "512 MB of memory"),
        ("{{ 'a'.center(10 ** 10) }}", "512 MB of memory"),
        ("{{ [1] | tojson(indent=10 ** 10) }}", "512 MB of memory"),
        ("{{ 'a' * 20000000 }}", "it writes 20,000,000 characters"),
        ("{{ raise_exception('a\n' * 100000) }}", "refuses this conversation: a a a"),
    ],
    ids=lambda x: x[:30],
)
def test_bad_templates_are_refused(tmp_path, template, words):
    with pytest.raises(UserError) as error:
        Chat(folder_of(tmp_path, template)).render(TURNS[0])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_template_without_end_is_ended_and_the_next_conversation_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 0)
    loops = "{% if messages[0].content == 'a' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    made = Chat(folder_of(tmp_path, loops + "{% endif %}{{ messages[0].content }}"))
    first = made.renderer.process
    with pytest.raises(UserError, match="chat template takes too long"):
        made.render([{"role": "user", "content": "a"}])
    assert first.returncode == -signal.SIGXCPU
    assert made.render([{"role": "user", "content": "b"}]) == "b"
    second = made.renderer.process
    second.kill()  # whatever else ends it
    with pytest.raises(UserError, match="chat template"):
        made.render(TURNS[0])
    assert made.render(TURNS[0]) == TURNS[0][0]["content"]
    third = made.renderer.process
    del made
    gc.collect()
    assert third.returncode is not None


def test_threads_share_a_template(tmp_path):
    made = Chat(folder_of(tmp_path, "{{ messages[0].content }}"))
    texts = [f"{i} 日\ud800" * (i % 7) for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: made.render([{"role": "user", "content": text}]), texts)) == texts
    with pytest.raises(UserError, match="no JSON"):
        made.render([{"role": "user", "content": {1, 2}}])


@pytest.mark.parametrize("messages", [[], "hello", [{"content": "a"}], [3], [{"role": 1, "content": "a"}]])
def test_bad_messages_are_refused(tmp_path, messages):
    with pytest.raises(UserError, match="content"):
        Chat(folder_of(tmp_path, CHATML)).render(messages)


def test_a_folder_without_a_template(tmp_path):
    with pytest.raises(UserError, match="no chat template"):
        Chat(tmp_path)
    for text, words in (("[1]", "no chat template"), ('{"chat_template": [5]}', "no chat"), ("[" * 5000, "nested deeper")):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            Chat(tmp_path)
    assert Chat(folder_of(tmp_path, "{{ bos_token is defined }}", bos_token=5)).render(TURNS[0]) == "False"
