"""Prompts for the greedy-decoding golden: (name, text). Each is at least 32 tokens long."""

PROMPTS = [
    ("prose_lighthouse",
     "The lighthouse had been dark for eleven years when the keeper's daughter came back to the island. She carried a "
     "single suitcase, a box of matches and a letter that she had not yet dared to open. At the top of the stairs"),
    ("prose_dialogue",
     "\"You can't leave now,\" said Tom, \"the bridge is out and the river's still rising.\"\n\"Then I'll swim,\" she "
     "answered, pulling on her coat. \"I've done it before, and I wasn't even"),
    ("encyclopedia",
     "Photosynthesis is the process by which green plants, algae and some bacteria turn light into chemical energy. "
     "It takes place in two stages. In the first stage, the light-dependent reactions,"),
    ("news",
     "WELLINGTON, 3 March - Engineers said on Tuesday that the new tunnel under the harbour would open four months "
     "ahead of schedule. The project, which began in 2016 and cost 2.4 billion dollars,"),
    ("recipe",
     "Tomato soup for four\n\nIngredients:\n- 1 kg ripe tomatoes\n- 2 onions\n- 3 cloves of garlic\n- 500 ml vegetable "
     "stock\n- salt, pepper, basil\n\nMethod:\n1. Chop the onions and"),
    ("python",
     "def fibonacci(n: int) -> int:\n    \"\"\"Return the n-th Fibonacci number, with fibonacci(0) == 0.\"\"\"\n"
     "    if n < 2:\n        return n\n    previous, current = 0, 1\n    for _ in range"),
    ("cpp",
     "#include <algorithm>\n#include <vector>\n\n// Returns the largest element; the vector must not be empty.\n"
     "template <typename T>\nT largest(const std::vector<T>& values) {\n  "),
    ("javascript",
     "// Groups an array of objects by the value of a key.\nexport function groupBy(items, key) {\n"
     "  return items.reduce((groups, item) => {\n    const value = item[key];\n    "),
    ("sql",
     "-- The ten customers who spent the most in 2023\nSELECT c.name, SUM(o.total) AS spent\nFROM customers AS c\n"
     "JOIN orders AS o ON o.customer_id = c.id\nWHERE"),
    ("json",
     "{\n  \"name\": \"example\",\n  \"version\": \"1.0.0\",\n  \"description\": \"A small package\",\n"
     "  \"scripts\": {\n    \"test\": \"node test.js\",\n    \"build\":"),
    ("shell",
     "#!/bin/sh\n# Back up every .txt file of the current folder into a dated archive.\nset -eu\n"
     "archive=\"backup-$(date +%Y-%m-%d).tar.gz\"\n"),
    ("makefile",
     "CC = gcc\nCFLAGS = -O2 -Wall\nOBJECTS = main.o list.o tree.o\n\nall: program\n\nprogram: $(OBJECTS)\n"
     "\t$(CC) $(CFLAGS) -o"),
    ("list_planets",
     "The planets of the solar system, in order of their distance from the Sun:\n1. Mercury\n2. Venus\n3. Earth\n"
     "4. Mars\n5."),
    ("list_counting",
     "Count upwards in steps of seven, one number on each line:\n7\n14\n21\n28\n35\n42\n49\n56\n"),
    ("maths_word_problem",
     "Question: A train travels 180 kilometres in 2 hours and 15 minutes. What is its average speed in kilometres per "
     "hour?\nAnswer: Let us work step by step. First,"),
    ("maths_latex",
     "\\begin{theorem}\nThe square root of $2$ is irrational.\n\\end{theorem}\n\\begin{proof}\nSuppose that "
     "$\\sqrt{2} = p/q$, where $p$ and $q$ are integers"),
    ("table",
     "| Country | Capital | Continent |\n|---|---|---|\n| France | Paris | Europe |\n| Japan | Tokyo | Asia |\n"
     "| Kenya |"),
    ("french",
     "Il était une fois, dans un petit village au bord de la mer, un pêcheur qui n'avait jamais appris à nager. Un "
     "matin d'été,"),
    ("german",
     "Sehr geehrte Damen und Herren,\n\nvielen Dank für Ihre Nachricht vom 12. März. Leider können wir die gewünschte "
     "Größe derzeit nicht liefern."),
    ("spanish",
     "La ciudad de México es la capital de los Estados Unidos Mexicanos. Fue fundada en el año 1325 sobre un lago, y "
     "hoy"),
    ("chinese",
     "北京是中华人民共和国的首都，也是全国的政治中心和文化中心。这座城市有三千多年的历史，"),
    ("russian",
     "Москва — столица России, крупнейший по численности населения город страны. Город расположен на реке"),
    ("chat_capital",
     "<|im_start|>user\nWhat is the capital of France, and what is it most famous for? Please answer in one or two short sentences."
     "<|im_end|>\n<|im_start|>assistant\n"),
    ("chat_with_system",
     "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
     "<|im_start|>user\nGive me three short tips for sleeping well.<|im_end|>\n<|im_start|>assistant\n"),
]
