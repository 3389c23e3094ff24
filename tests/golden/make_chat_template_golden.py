#!/usr/bin/env python3
"""Makes chat_templates.json: what Python's Jinja2, set up as transformers does, makes of chat templates.

    ./make_chat_template_golden.py --model SmolLM2-135M-Instruct.Q4_1.gguf --out .

"families" holds whole templates in the style of well-known models (written for this test, but for SmolLM2's own, which
comes from the GGUF file), "conversations" lists of messages, and "cases" the text of each pair. "snippets" are small
templates about one rule each, rendered with the first conversation. Where rendering fails, "error" stands in place of
"text": the message that raise_exception had, or empty for all other failures. "now" is the local time that
strftime_now tells.
"""

import argparse
import json
from datetime import datetime
from pathlib import Path

import jinja2
from gguf import GGUFReader
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

from golden_writer import write

HERE = Path(__file__).resolve().parent
BOS, EOS = "<s>", "</s>"
NOW = datetime(2024, 7, 4, 13, 5, 9)

CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles have to go user, assistant, user, ...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_is_here is defined %}
        {%- set date_string = strftime_is_here("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message goes first, whether there is one or not. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('There is no system role') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles have to alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

GEMMA_SYSTEM = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {{ item['text'] | trim }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

PHI = """{% for message in messages %}
{% if message['role'] == 'system' and message['content'] %}
{{ '<|system|>\\n' + message['content'] + '<|end|>\\n' }}
{%- elif message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + '<|end|>\\n' }}
{%- else %}
{{ '<|' ~ message.role ~ '|>\\n' ~ message.content ~ '<|end|>\\n' -}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>\\n' }}
{% else %}
{{ eos_token }}
{% endif %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN_THINKING = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

COMMAND = """{{ bos_token }}{% set known = {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'} %}
{%- for message in messages if message.role in known %}
<|START_OF_TURN_TOKEN|><|{{ known[message.role] }}_TOKEN|>{{ message.content | trim }}<|END_OF_TURN_TOKEN|>
{%- else %}
nothing was said
{%- endfor %}
{% if messages | selectattr('role', 'equalto', 'system') | list | length > 0 %} with system{% endif +%}
{{ messages | map(attribute='role') | join(', ') }}
{% generation %}<|START_OF_TURN_TOKEN|><|{{ 'chatbot' | upper }}_TOKEN|>{% endgeneration %}
"""

LLAMA31 = LLAMA3.replace("strftime_is_here", "strftime_now")

HARMONY = """{#- Macros that call each other, as gpt-oss has them. #}
{%- macro render_type(spec, required, is_nullable=false) -%}
    {%- if spec.type == "array" -%}
        {%- if spec['items'] -%}
            {{- render_type(spec['items'], required) + "[]" }}
        {%- else -%}
            {{- "any[]" }}
        {%- endif -%}
        {%- if is_nullable or spec.nullable -%}
            {{- " | null" }}
        {%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type is not mapping and spec.type[0] is defined -%}
        {{- spec.type | join(" | ") }}
    {%- elif spec.type == "object" -%}
        {{- "{\n" }}
        {%- for name, inner in spec.properties.items() -%}
            {{- name -}}
            {%- if name not in (spec.required or []) -%}
                {{- "?" }}
            {%- endif -%}
            {{- ": " + render_type(inner, spec.required or []) }}
            {%- if not loop.last -%}
                {{- ", " }}
            {%- endif -%}
        {%- endfor -%}
        {{- "}" }}
    {%- else -%}
        {{- spec.type }}
    {%- endif -%}
{%- endmacro -%}
{%- macro build_system_message() -%}
    {%- if model_identity is not defined %}
        {%- set model_identity = "You are a model, trained by somebody." %}
    {%- endif %}
    {{- model_identity + "\n" }}
    {{- "Knowledge cutoff: 2024-06\n" }}
    {{- "Current date: " + strftime_now("%Y-%m-%d") + "\n\n" }}
    {%- if reasoning_effort is not defined %}
        {%- set reasoning_effort = "medium" %}
    {%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\n\n" }}
    {{- "# Valid channels: analysis, commentary, final. Channel must be included for every message." }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}
{{- build_system_message() }}
{{- "<|end|>" }}
{%- set spec = {"type": "object", "required": ["a"], "properties": {"a": {"type": "array", "items": {"type": "string"}}, "b": {"type": ["number", "null"]}, "c": {"type": "array", "items": {"type": "number"}, "nullable": true}}} %}
{{- render_type(spec, []) }}
{%- for message in messages -%}
    {%- if message.role == "assistant" -%}
        {%- set channel = "final" if loop.last else "analysis" %}
        {{- "<|start|>assistant<|channel|>" + channel + "<|message|>" + message.content + "<|end|>" }}
    {%- else -%}
        {{- "<|start|>" + message.role + "<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
"""

CONVERSATIONS = {
    "one_question": [("user", "Why is the sky blue?")],
    "with_system": [("system", "You answer in one word."), ("user", "Why is the sky blue?")],
    "several_turns": [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Tell me a joke."),
                      ("assistant", "<think>\nA joke, then.\n</think>\n\nTwo atoms walk into a bar."), ("user", "Go on.")],
    "system_and_turns": [("system", "  Be kind.\n"), ("user", "a"), ("assistant", "b"), ("user", "c")],
    "unicode": [("system", "Réponds en français. 🙂"), ("user", "什么是注意力机制？"), ("assistant", "注意力…\u3000"),
                ("user", "\u00a0Größe\u2028שלום")],
    "white_space": [("user", "  leading and trailing  \n\n"), ("assistant", "\n\tanswer\r\n "), ("user", " \n ")],
    "looks_like_a_template": [("user", "{{ bos_token }}{% if %} {# no #} 'quote' \"double\" \\n")],
    "empty_texts": [("system", ""), ("user", ""), ("assistant", ""), ("user", "")],
    "ends_with_assistant": [("user", "Count to three."), ("assistant", "One, two,")],
    "twice_user": [("user", "a"), ("user", "b")],
    "unknown_role": [("user", "a"), ("critic", "b")],
    "system_later": [("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d")],
    "nothing": [],
}

SNIPPETS = [
    # White space around tags.
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a {%- if true -%} b {%- endif -%} c", "a\n  {%+ if true +%}\nb{% endif %}",
    "  {{ 1 }}  \n  {{- 2 -}}  \n  3", "x\n\n", "x\n", "\n", "", "a\r\nb\rc\r\n", "a {# note #} b\n  {# note #}\nc",
    "a {#- note -#} b", "{# a #}\n\n{# b #}\nc", "  {% set x = 1 %}  {{ x }}", "{% set x = 1 %}\n  {% set y = 2 %}\n{{ x }}",
    "{{ 'a' }}\n{{ 'b' }}\n", "{%if true%}a{%endif%}", "{{'a'}}{{'b'}}", "\u3000{%- if true %}x{% endif %}", "{ { % } } #}",
    "{% for i in [1, 2] %}\n  {{ i }}\n{% endfor %}\n", "{{ 1 -}}\n  {% if true %}x{% endif %}", "a{{ '\\n' -}}\n {% if true %} b{% endif %}",
    "x {% if true -%}\n\n  y\n{%- endif %}\nz", "{#\n-#}\nx", "{% if true %}\n\nx\n{% endif %}", "\t{% if true %}x{% endif %}\n\t{{ 'y' }}",
    # Literals.
    r"{{ 'a\n\t\\\'\"' }}", r'{{ "\x41\u00e9\U0001F600\101" }}', r"{{ 'a\qb' }}", "{{ 'a' 'b' }}", "{{ 12 }} {{ 1.5 }} {{ 1e3 }} {{ 1e16 }}",
    "{{ 0.1 }} {{ 1.0 }} {{ 100000000.0 * 100000000.0 }} {{ 1 / 3 }}", "{{ true }} {{ False }} {{ none }} {{ None is none }}",
    "{{ {'a': 1, 'b': [1, 2, none, true, 1.5]} | tojson }}", "{{ {'a': {}, 'b': [], 'c': {'d': 1}} | tojson(indent=2) }}",
    r"{{ 'a\"\\\n\t\x01é\u2028/<>&' | tojson }}", "{{ () | tojson }} {{ (1,) | tojson }} {{ (1, 2) | tojson }} {{ (1) | tojson }}",
    "{{ {'a': {'b': 1}} ['a']['b'] }}", "{{ {}|tojson }}{{ []|tojson }}", "{{ '}}' }}{{ '%}' }}{{ \"{{\" }}",
    # Operators and their order.
    "{{ 1 + 2 * 3 - 4 }}", "{{ (1 + 2) * 3 }}", "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }}",
    "{{ 7 / 2 }} {{ 6 / 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7.5 % -2 }}", "{{ 1 ~ 2 + 3 ~ 'a' }}", "{{ 'a' ~ 1 ~ none ~ true ~ nothing ~ 1.5 }}",
    "{{ 'ab' * 3 }}{{ 2 * 'x' }}{{ 'x' * -1 }}", "{{ ([1] + [2, 3]) | tojson }}", "{{ -1 | abs_is_no_filter if false else -2 }}",
    "{{ 1 < 2 }} {{ 2 <= 2 }} {{ 'a' < 'b' }} {{ 3 > 4 }} {{ 1 != 1.0 }} {{ true == 1 }} {{ 'a' >= 'é' }}",
    "{{ not true or true }} {{ not (true or true) }} {{ true and false or true }} {{ false and (false or true) }}",
    "{{ 'a' or 'b' }} {{ '' or 'b' }} {{ 'a' and 'b' }} {{ 0 and 1 }} {{ none or 0 }}", "{{ not 1 == 2 }} {{ not 1 in [1] }}",
    "{{ 1 in [1, 2] }} {{ 3 not in [1, 2] }} {{ 'b' in 'abc' }} {{ 'k' in {'k': 1} }} {{ '' in 'a' }} {{ 1 in nothing }}",
    "{{ 'a' if true }}{{ 'a' if false }}{{ 'a' if false else 'b' if false else 'c' }}", "{{ 1 if 1 > 2 else 2 }}",
    "{{ [1, [2, 3]] == [1, [2, 3]] }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }} {{ none == false }} {{ '' == none }} {{ nothing == nowhere }}",
    "{{ 1 + 1 is number }}", "{{ '1' + 1 is string }}", "{{ - 3 + - - 2 }} {{ +3 }} {{ -true }}", "{{ 'x' + 'y' | upper }}", "{{ ('x' + 'y') | upper }}",
    "{{ 5 - 3 - 1 }} {{ 8 / 4 / 2 }} {{ 2 * 3 % 4 }}", "{{ 1 + true }}", "{{ 'é' * 2 }}", "{{ 1 == 1 and 2 == 2 }}",
    "{{ 10 // 3 * 3 + 10 % 3 }}", "{{ 0.1 + 0.2 }} {{ 1e100 }} {{ 123456789.123 }} {{ 1e-5 }} {{ -0.0 }}",
    "{{ 1e308 * 10 }} {{ -1e308 * 10 }} {{ 2.5 * 2 }}", "{{ [1, 2,] | tojson }} {{ {'a': 1,} | tojson }}",
    # Access, subscripts and slices count characters.
    "{{ messages[0].role }} {{ messages[0]['role'] }} {{ messages[-1].content }} {{ messages[0].missing }} {{ messages[9] }}",
    "{{ 'añb'[1] }} {{ 'añb'[-1] }} {{ 'añ😀b'[1:3] }} {{ 'añ😀b'[::-1] }} {{ 'añ😀b'[:-1] }} {{ 'añ😀b'[::2] }} {{ 'abc'[5] }} {{ 'abc'[5:] }}",
    "{{ [1,2,3,4][1:] | tojson }}{{ [1,2,3,4][:2] | tojson }}{{ [1,2,3,4][-2:] | tojson }}{{ [1,2,3,4][::-1] | tojson }}{{ [1,2,3,4][3:0:-2] | tojson }}",
    "{{ [1,2,3][-9:9] | tojson }}{{ [1,2,3][9:] | tojson }}{{ [1,2,3][2:1] | tojson }}{{ [1,2,3][:] | tojson }}{{ [1,2,3][-1:-9:-1] | tojson }}",
    "{{ 'x'.missing }}|{{ none.missing }}|{{ 5.missing }}", "{{ {'a': 1}.a }}{{ {'a': 1}.b }}{{ {'a': {'b': 2}}.a.b }}", "{{ [1,2].0 }}",
    "{{ nothing }}|{{ nothing is defined }}|{{ nothing is undefined }}|{{ nothing or 'x' }}", "{{ [10, 20][true] }}", "{{ 'abc'[1:][0] }}",
    "{{ [1,2,3][1:none] | tojson }}", "{{ {'1': 'a'}[1] }}", "{{ [1]['a'] }}", "{{ 'abc'['x'] }}",
    # Statements.
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{% endfor %}",
    "{% for x in [1,2,3] %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}", "{% for x in [] %}a{% else %}b{% endfor %}",
    "{% for x in [1,2,3,4] if x is even %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% else %}none{% endfor %}", "{% for c in 'añ' %}{{ c }},{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in {'a': 1, 'b': 2} %}{{ k }}{% endfor %}",
    "{% for (a, b) in [[1, 2], [3, 4]] %}{{ a + b }},{% endfor %}", "{% for x in nothing %}a{% else %}b{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set ns = namespace(x=1, y='a') %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z }}{{ ns['x'] }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set x %}a{{ 1 }}\n b{% endset %}[{{ x }}]", "{% set t = 1, 2 %}{{ t | tojson }}",
    "{% if 0 %}a{% elif '' %}b{% elif [] %}c{% elif {} %}d{% elif none %}e{% else %}f{% endif %}", "{% if nothing %}a{% endif %}b",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{% if j == 0 %}{% break %}{% endif %}{% endfor %}{{ loop.index0 }};{% endfor %}",
    "{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}{% for i in range(1, 3) %}{{ i }}{% endfor %}{{ range(0) | list | tojson }}{{ range(3) | length }}",
    "{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}", "{% for i in [] %}{% else %}{% set x = 1 %}{% endfor %}{{ x }}",
    "{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y }}", "{% for x in [1] %}{% endfor %}{{ x }}{{ loop }}", "{% for x in [[1, 2]] %}{% for y in x %}{{ loop.last }}{% endfor %}{{ loop.last }}{% endfor %}",
    "{% set x = messages[0] %}{{ x.role }}", "{% if messages %}a{% endif %}{% if not messages %}b{% endif %}", "{% set messages = [] %}{{ messages | length }}",
    # Filters.
    "[{{ '  a b ' | trim }}] [{{ 'xxaxx' | trim('x') }}] [{{ '\u00a0\u3000a\x1f' | trim }}]", "{{ 'añ' | length }} {{ [1, 2] | length }} {{ {'a': 1} | count }} {{ nothing | length }}",
    "{{ 'aB cD' | upper }} {{ 'aB cD' | lower }} {{ 'aB cD' | capitalize }} {{ 'aB cD-eF (gh) 1a' | title }}", "{{ nothing | default('d') }} {{ '' | default('d') }}|{{ '' | default('d', true) }} {{ none | default('d') }} {{ nothing | default }}",
    "{{ nothing | d('x') }} {{ 0 | default('y', boolean=true) }} {{ nothing | default(default_value='z') }}", "{{ [1, 'a', none] | join }} {{ ['a', 'b'] | join(', ') }} {{ 'abc' | join('-') }} {{ [] | join('x') }}",
    "{{ [1, 2] | first }}{{ [1, 2] | last }}{{ [] | first }}{{ 'añ' | last }}{{ 'ñb' | first }}", "{{ 'aXbXc' | replace('X', '-') }} {{ 'aXbXc' | replace('X', '-', 1) }} {{ 'aaa' | replace('aa', 'b') }}",
    "{{ 'ab' | list | tojson }} {{ {'a': 1} | list | tojson }} {{ range(2) | list | tojson }}", "{{ [1, 2] | reverse | list | tojson }} {{ 'añ' | reverse }}",
    "{{ {'a': 1} | items | list | tojson }}", "{{ 5 | string + 'x' }} {{ 1.0 | string }} {{ none | string }} {{ true | string }}",
    "{{ '12' | int + 1 }} {{ '1.9' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 3.9 | int }} {{ ' 5 ' | int }} {{ -3.9 | int }}",
    "{{ messages | map(attribute='role') | join(',') }} {{ ['a', 'b'] | map('upper') | join }}", "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}",
    "{{ messages | rejectattr('role', 'equalto', 'user') | list | tojson }} {{ [1, 2, 3] | select('odd') | list | tojson }} {{ [0, 1] | select | list | tojson }} {{ [1, none] | reject('none') | list | tojson }}",
    "{{ messages | selectattr('role') | list | length }} {{ messages | selectattr('missing') | list | length }} {{ messages | selectattr('role', 'in', ['user']) | list | length }}",
    "{{ 'a' | safe }} {{ 'A' | upper | lower | trim }}", "{{ messages | tojson }}", "{{ messages[0] | tojson(indent=4) }}", "{{ 5 | trim }} {{ none | upper }} {{ nothing | trim }}|",
    # Methods.
    "[{{ '  a '.strip() }}] [{{ '  a '.lstrip() }}] [{{ '  a '.rstrip() }}] [{{ 'xyaxy'.strip('yx') }}] [{{ '\\na\\n\\n'.rstrip('\\n') }}]",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith(('x', 'a')) }} {{ ''.startswith('') }}", "{{ 'a b  c'.split() | tojson }} {{ 'a,b,,c'.split(',') | tojson }} {{ 'a,b,c'.split(',', 1) | tojson }} {{ ' a b c '.split(none, 1) | tojson }}",
    "{{ ''.split() | tojson }} {{ ''.split(',') | tojson }} {{ ','.split(',') | tojson }} {{ 'aXXb'.split('XX')[-1] }} {{ '\u00a0a\u3000b'.split() | tojson }} {{ 'a  b '.split(' ') | tojson }}",
    "{{ 'Ab'.upper() }}{{ 'Ab'.lower() }}{{ 'ab CD'.capitalize() }}", "{{ 'a.b.c'.replace('.', '') }} {{ 'a.b.c'.replace('.', '-', 1) }}", "{{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 2) }}",
    "{{ {'a': 1, 'b': 2}.keys() | list | tojson }} {{ {'a': 1, 'b': 2}.values() | list | tojson }}", "{{ {'a': 1, 'b': 2}.items() | list | tojson }}", "{{ messages[0].items() | list | tojson }}",
    "{{ 'a b c'.split(' ', maxsplit=1) | tojson }}", "{{ 'a b  c '.split(none, 0) | tojson }}", "{{ 'abc'.strip('') }}",
    # Tests.
    "{{ 1 is defined }} {{ 'a' is string }} {{ {} is mapping }} {{ [] is iterable }} {{ 'a' is iterable }} {{ {} is iterable }} {{ 1 is iterable }} {{ none is iterable }}",
    "{{ 1 is number }} {{ true is number }} {{ 1.5 is float }} {{ 1 is integer }} {{ true is integer }} {{ true is boolean }} {{ [] is sequence }} {{ 1 is sequence }} {{ {} is sequence }}",
    "{{ none is none }} {{ nothing is none }} {{ none is not none }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ 0 is false }}", "{{ 3 is odd }} {{ 3 is even }} {{ -3 is odd }} {{ 6 is divisibleby(3) }} {{ 7 is divisibleby 3 }}",
    "{{ 1 is eq(1) }} {{ 'a' is equalto 'a' }} {{ 1 is ne 2 }} {{ 'a' is in ['a'] }} {{ 'a' is in 'abc' }} {{ true is sameas true }} {{ 1 is sameas true }}", "{{ nothing is string }} {{ nothing is iterable }} {{ nothing is mapping }}",
    "{{ 'a' is not string or true }} {{ not 'a' is string }}", "{{ x is defined and x.y }}|{{ messages[0].missing is defined }}|{{ messages[0]['role'] is defined }}",
    # Macros and functions.
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(b=1, a=2) }} {{ f() }} {{ f(1) | upper ~ 'x' }}", "{% macro f(a, b=a + 1, c=b + 1) %}{{ c }}{% endmacro %}{{ f(1) }}{{ f(1, c=5) }}{{ f(1, 7) }}",
    "{% macro f() -%}\n  a\n  {%- if true %} b{% endif %}\n{% endmacro %}[{{ f() }}]\n[{{- f() -}}]", "{% macro f() %}{% endmacro %}[{{ f() }}]{{ f is defined }}{{ f is callable }}{{ g is callable }}{% if f %}x{% endif %}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% macro f(n) %}{{ n }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% set x = 1 %}{% macro f() %}{{ x }}{% set x = 3 %}{{ x }}{% endmacro %}{% set x = 2 %}{{ x }}", "{% set x = 1 %}{% macro f() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ f() }}", "{% macro f() %}{{ later }}{% endmacro %}{% set later = 2 %}{{ f() }}",
    "{% macro f() %}{{ x }}{{ loop }}{% endmacro %}{% for x in [1, 2] %}{{ f() }};{% endfor %}", "{% for x in [1, 2] %}{% macro f(y) %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}{% endfor %}{{ f is defined }}",
    "{% macro f() %}{{ messages[0].role }}{{ bos_token }}{% endmacro %}{{ f() }}", "{% macro f(x) %}{% for i in x %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}{% endmacro %}{{ f([1, 2, 3]) }}",
    "{% macro f(g) %}{{ g(1) }}{% endmacro %}{% macro h(x) %}<{{ x }}>{% endmacro %}{{ f(h) }}", "{% macro f(a) %}{{ a is defined }}{% endmacro %}{{ f() }}{{ f(none) }}", "{% set ns = namespace(n=0) %}{% macro f() %}{% set ns.n = ns.n + 1 %}{% endmacro %}{{ f() }}{{ f() }}{{ ns.n }}",
    "{% macro f() %}a{% endmacro f %}{{ f() }}", "{% macro f(a,) %}{{ a }}{% endmacro %}{{ f(1,) }}", "{% macro f() %}1{% endmacro %}{% macro f() %}2{% endmacro %}{{ f() }}", "{{ f() }}{% macro f() %}1{% endmacro %}", "{% set f = range %}{{ f(3) | list | tojson }}",
    "{{ range is defined }} {{ namespace is defined }} {{ strftime_now is defined }} {{ raise_exception is defined }} {{ no_function is defined }} {{ range is callable }}", "{% set range = 1 %}{{ range }}", "{% set range = 1 %}{{ range(2) }}",
    "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d %H:%M:%S %j %A %B %p %I %y %% x') }}|{{ strftime_now('') }}|{{ strftime_now('%f %Z%z') }}|{{ strftime_now('no') }}", "{{ strftime_now() }}", "{{ strftime_now(1) }}", "{{ strftime_now('%Y', 2) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(b=1) }}", "{% macro f(a) %}{% endmacro %}{{ f(1, a=1) }}", "{% macro f(a=1, b) %}{% endmacro %}", "{% macro f %}{% endmacro %}", "{% macro f( %}{% endmacro %}", "{% macro f() %}", "{% endmacro %}", "{% macro f() %}{% endfor %}", "{% for i in [1] %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}",
    # What fails.
    "{{ raise_exception('on purpose: é') }}", "{% if false %}{{ raise_exception('not reached') }}{% endif %}ok", "{{ nothing.more }}", "{{ nothing['more'] }}", "{{ nothing + 1 }}", "{{ nothing() }}",
    "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ 'a' + none }}", "{{ [] + 'a' }}", "{{ 1 < 'a' }}", "{{ none < 1 }}", "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 1.5 / 0 }}",
    "{{ none[0:1] }}", "{{ 5 | length }}", "{% for x in 5 %}{% endfor %}", "{% for x in none %}{% endfor %}", "{% for a, b in [[1]] %}{% endfor %}", "{{ 'a'.nothing() }}", "{{ none.strip() }}",
    "{{ 1 in 'abc' }}", "{{ 1 in 5 }}", "{{ 'a'.split('') }}", "{{ [1,2,3][::0] }}", "{{ range(1, 5, 0) }}", "{{ nothing | tojson }}", "{{ -'a' }}", "{{ 'a' | unknown }}", "{{ 'a' is unknown }}", "{{ 'a'.startswith(1) }}",
    "{% set messages[0].role = 1 %}", "{% set x = 1 %}{% set x.y = 2 %}", "{% if %}{% endif %}", "{% if true %}", "{% for x in [1] %}", "{% endif %}", "{% else %}", "{{ }}", "{{ 1", "{% if true", "{# no end", "{{ 'no end }}",
    "{{ (1 }}", "{{ [1 }}", "{{ 1) }}", "{{ a b }}", "{{ 1 + }}", "{{ .a }}", "{{ a. }}", "{{ 'a' | }}", "{{ a is }}", "{{ @ }}", "{% unknown %}", "{% for in x %}{% endfor %}", "{% for x y %}{% endfor %}", "{% break %}",
    "{% for x in [1] %}{% endif %}", "{% if true %}{% endfor %}", "{{ {'a' 1} }}", "{{ {'a': } }}", "{{ f(a=1, 2) }}", "{{ 'a' | trim(1, 2) }}", "{{ 'a' | default(x=1) }}", "{{ 'a'.upper(1) }}", "{{ '\\x4' }}",
]


class Generation(Extension):
    """transformers' {% generation %}, which marks the assistant's part and prints its body."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("print_body"), [], [], body).set_lineno(line)

    def print_body(self, caller):
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    result = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    result.filters["tojson"] = tojson
    result.globals["raise_exception"] = raise_exception
    result.globals["strftime_now"] = lambda format: NOW.strftime(format)
    return result


def render(template: str, conversation: list) -> dict:
    messages = [{"role": role, "content": content} for role, content in conversation]
    try:
        text = environment().from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, bos_token=BOS, eos_token=EOS)
        return {"text": text}
    except jinja2.exceptions.TemplateError as error:
        raised = type(error) is jinja2.exceptions.TemplateError
        return {"error": error.message if raised else ""}
    except Exception:  # what Python itself finds wrong: ZeroDivisionError, TypeError, ...
        return {"error": ""}


def template_of_gguf(path: Path) -> str:
    return GGUFReader(path).fields["tokenizer.chat_template"].contents()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    args = parser.parse_args()
    families = {
        "smollm2": template_of_gguf(args.model), "chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3,
        "mistral": MISTRAL, "gemma": GEMMA, "gemma_with_system": GEMMA_SYSTEM, "phi": PHI, "qwen": QWEN,
        "qwen_thinking": QWEN_THINKING, "deepseek": DEEPSEEK, "llama31": LLAMA31, "harmony": HARMONY, "zephyr": ZEPHYR, "command": COMMAND,
    }
    cases = [{"family": family, "conversation": name} | render(template, conversation)
             for family, template in families.items() for name, conversation in CONVERSATIONS.items()]
    first = next(iter(CONVERSATIONS.values()))
    snippets = [{"template": snippet} | render(snippet, first) for snippet in SNIPPETS]

    def lines(items) -> str:
        return ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)

    conversations = {name: [{"role": r, "content": c} for r, c in turns] for name, turns in CONVERSATIONS.items()}
    write(args.out / "chat_templates.json",
          f'{{"made_with": {json.dumps({"jinja2": jinja2.__version__})},\n'
          f'"now": {json.dumps(NOW.timetuple()[:6])},\n"bos_token": "{BOS}", "eos_token": "{EOS}",\n'
          f'"families": {json.dumps(families, ensure_ascii=False, indent=0)},\n'
          f'"conversations": {json.dumps(conversations, ensure_ascii=False, indent=0)},\n'
          f'"cases": [\n{lines(cases)}\n],\n"snippets": [\n{lines(snippets)}\n]}}\n')
    print(f"{len(cases)} cases, {len(snippets)} snippets")


if __name__ == "__main__":
    main()
