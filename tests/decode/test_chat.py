"""Chat templates against transformers' apply_chat_template, and what an unsafe one comes to."""

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

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
    ],
)
def test_bad_templates_are_refused(tmp_path, template, words):
    with pytest.raises(UserError) as error:
        Chat(folder_of(tmp_path, template)).render(TURNS[0])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("messages", [[], "hello", [{"content": "a"}], [3], [{"role": 1, "content": "a"}]])
def test_bad_messages_are_refused(tmp_path, messages):
    with pytest.raises(UserError, match="content"):
        Chat(folder_of(tmp_path, CHATML)).render(messages)


def test_a_folder_without_a_template(tmp_path):
    with pytest.raises(UserError, match="no chat template"):
        Chat(tmp_path)
