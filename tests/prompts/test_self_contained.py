"""Problems that need the passage they were written from, and problems that only look so."""

from lightning_serl.prompts.self_contained import needs_passage, refers_to_text

NEEDING = (
    "According to the passage, who built the Zorin bridge?", "What is the main idea of the text?",
    "Who is the author?", "What does the author think about Zorin?", "What is the text about?",
    "Who wrote the article?", "What is described in the text above?", "What are the three causes mentioned above?",
    "What does the passage say?", "What is the narrator's job?", "In the story, who is Mira?",
    "Dans le texte, qui est Zorin ?", "Según el texto, ¿quién es Zorin?", "Laut Text, wer baute die Brücke?",
    "Nel testo, chi è Zorin?", "No texto, quem é Zorin?", "Согласно тексту, кто построил мост?",
    "根据文章，桥有多长？", "上記によると、橋は何ですか？", "이 글에서 다리는?",
    "When was it built?", "What did he do in 1990?", "Why is this important?", "What is its height?",
    "How many of them survived?", "What was his name?", "What year did they move to Paris?", "Is it made of wood?",
    "What is the name of the village?", "How old was the king when he died?", "What did the study find?",
)  # fmt: skip
COMPLETE = (
    "How long is the Zorin bridge?", "When was the Zorin bridge built and who paid for it?",
    "Who is the author of Zorin Tales?", "What does the text of the Treaty of Rome say about farms?",
    "Who painted the story of Zorin?", "What is the meaning of the passage of time?",
    "What is the text size limit of the Zorin protocol?", "Which document proves Lodo's founding?",
    "How long does it take to cross the Zorin bridge?", "What time is it in Paris when it is noon in Rome?",
    "Is it true that Mira owns an owl?", "Why do plants need light, and how do they get it?",
    "What is the largest of these numbers: 3, 5, 8?", "How do bees make honey, and why do they store it?",
    "What is the name of the village where Mira was born?", "Who was the king of Lodo in 1203?",
    "Mira has 3 apples. How many does she have left after eating one?", "What does the heart do?",
    "If a train travels 60 km in 2 hours, what is its speed?", "What is the color of Mira?",
    "Quelle est la hauteur du pont de Zorin ?", "佐林桥有多长？",
)  # fmt: skip


def test_problems_that_lean_on_a_text_nobody_sees():
    assert [text for text in NEEDING if not needs_passage(text)] == []
    assert [text for text in COMPLETE if needs_passage(text)] == []


def test_responses_that_speak_of_the_passage():
    assert refers_to_text("The passage says that Mira is red. So \\boxed{red}.")
    assert not refers_to_text("When was it built? It was built in 1990, so \\boxed{1990}.")
