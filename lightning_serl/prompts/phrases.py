"""Phrases with which models head, announce, solve and close the problems that they write, in a dozen languages."""

from __future__ import annotations

import re

# Words that head a problem, in the languages whose solutions are known too.
PROBLEM_WORDS = (
    "problems?|questions?|exercises?|tasks?|puzzles?|riddles?|word problem|math problem|prompt|item|instruction|"
    "problemas?|preguntas?|ejercicios?|questões|questão|pergunta|exercícios?|tarefa|tarea|"
    "problèmes?|exercices?|énoncé|aufgaben?|fragen?|problem[ai]|domand[ae]|esercizi[oi]?|quesito|"
    "opgave|vraag|zadanie|pytanie|soru|fråga|uppgift|soal|pertanyaan|bài|câu(?: hỏi)?|задач[аи]|вопрос|задание|"
    "题目|題目|问题|問題|练习|例题?|问|問|문제|질문|مسألة|سؤال|السؤال|المسألة|प्रश्न|सवाल|ข้อ|คำถาม|โจทย์"
)
# Words that open a solution at the start of a line or sentence; the colon excludes "Answer the question".
SOLUTION_WORDS = (
    "solutions?|(?:the )?(?:final |correct |right )?answers?|explanation|"
    "解|解答|解析|答|答案|参考答案|正解|정답|풀이|soluci[oó]n|respuesta|solução|resposta|réponse|lösung|antwort|"
    "soluzione|risposta|решение|ответ|الحل|الجواب|الإجابة|हल|उत्तर|समाधान"
)
_MORE_WORDS = (
    "ans|answer key|your answer|my answer|correct (?:option|choice)|hints?|steps?|reasoning|"
    "rationale|working|"
    "output|difficulty(?: level)?|level|topics?|category|subject|skills?|type|concepts?|grade|tags?|source|"
    "explicaci[oó]n|pista|dificultad|paso \\d+|explication|indice|étape \\d+|erklärung|hinweis|schritt \\d+|"
    "spiegazione|"
    "explicação|dica|объяснение|подсказка|解释|提示|难度|説明|해설|힌트"
)
ANSWER = re.compile(
    rf"(?:^|[.?!。？！؟।][*_\"”]{{0,3}})[ \t\u3000]{{0,20}}[-–—>•*_#(\[（【]{{0,6}}[ \t]{{0,4}}[*_]{{0,3}}"
    rf"(?:(?:{SOLUTION_WORDS}|{_MORE_WORDS})[*_]{{0,3}}\s{{0,3}}(?:[:：=]|[-–—](?=\s))|"
    rf"(?:{SOLUTION_WORDS})[*_]{{0,3}}[ \t]*$|"
    r"(?:the |our |so the |and the )?(?:final |correct |right )?(?:answer|solution|"
    r"result) (?:to [^.\n]{1,60} )?(?:is|would be|should be|will be|equals)\b|"
    r"la respuesta (?:correcta )?es\b|la réponse est\b|die antwort (?:ist|lautet)\b|la risposta è\b|"
    r"a resposta é\b|答案是|答えは|정답은|"
    r"to (?:solve|find|answer|determine|calculate) [^.\n]{0,80}, (?:we|you|one|first|divide|multiply|add|"
    r"subtract|use|start)\b|"
    r"(?:para resolver|pour résoudre|um [^.\n]{0,40} zu lösen)\b|✅|step \d+[ \t]{0,2}[.:)]|"
    r"write your answer (?:here|below)|"
    r"<(?:answer|solution|explanation)>|\[(?:your )?answer|input\s?[:：][ \t]*$)|"
    r"(?<=[ \t\u3000])[*_]{0,3}(?:(?-i:(?:(?:Correct|Right|Final) [Aa]nswer|Answer|Ans|Respuesta|Réponse|Antwort|"
    r"Risposta|Resposta|Ответ))|(?:正确|参考)?答案|正解|정답)[*_]{0,3}\s?[:：]|"
    rf"(?<=[ \t\u3000])[(\[（](?:{SOLUTION_WORDS}|ans)\s?[:：]",
    re.IGNORECASE | re.MULTILINE,
)
# Sentences about the list or to its reader ask nothing of the one who solves.
_REMARK = re.compile(
    r"\blet (?:me|us) know\b|\bfeel free\b|\bi hope\b|\bhope (?:this|these|that) help|\bgood luck\b|"
    r"\bhappy to (?:help|write)\b|"
    r"\bhappy (?:solving|learning|studying)\b|^\W*have fun\b|^\W*enjoy\b[^.\n]{0,30}[!.]?$|\banything else\b|"
    r"\bif you (?:need|want|would like|have) (?:more|another|any|help|me|further|other)\b|"
    r"\b(?:would|do) you (?:like|want|need)\b[^?\n]{0,30}\b(?:more|another|other|me to|help|answers?|"
    r"solutions?|hints?)\b|"
    r"\b(?:these|those|the above|more|other|new|additional|all|another|similar|"
    r"the next) (?:\w+ ){0,2}(?:problems?|questions?|exercises?|examples|tasks)\b"
    r"[^.?\n]{0,80}(?:\b(?:are|is|should|can|will|cover|help|follow|test|were|have|require|need)\b|[:!.]$|\?$)|"
    r"^\W{0,4}(?:note(?: that)?:? )?(?:this|the|each|every) (?:\w+ )?(?:problem|question|exercise|"
    r"task)s? (?:is|are|has|have|tests?|requires?|can|was|asks?|involves?|needs?|should|covers?|will|assesses|"
    r"uses?)\b|"
    r"^\W{0,4}(?:please )?note that (?:these|this|the|each|all) (?:\w+ )?(?:problem|question|answer|list)s?\b|"
    r"^\W{0,4}in this (?:problem|question|exercise)\b|\byou (?:were|are) looking for\b|\bwhat you (?:want|"
    r"need|asked)|"
    r"^\W*(?:please |now )?(?:provide|give|write|find|show|submit|solve) (?:me )?(?:the|your|this|a|"
    r"these) (?:solution|answer|problem|question)s?\W*$|"
    r"^\W{0,4}(?:user|human|assistant)\s?:|"
    r"\b(?:these|this|those) (?:are|is) (?:just|only|merely|a (?:simple|basic|classic|good|great|fun|new|typical))\b|"
    r"\byour (?:answer|solution) (?:here|below)\b|^\W*can you (?:solve|answer|figure out|crack|guess) (?:it|"
    r"this|that|the \w+)\W*$|"
    r"\b(?:i have|i['’]ve) (?:created|written|made|added)\b|^\W*(?:please )?let['’]s \w+|\bhere(?:['’]s|"
    r" is) the (?:solution|answer)|"
    r"^\W*(?:and so on|(?:please )?(?:continue|repeat|keep going)\b[^.\n]{0,40}\b(?:pattern|list|needed|numbering|"
    r"way))|"
    r"^\W*(?:can|could|would|will) you (?:please |also )?(?:write|give|create|generate|make|provide|add|think of|"
    r"come up with)"
    r"\b[^?\n]{0,30}\b(?:one|another|more|similar|some|next)\b|"
    r"\b(?:i['’]m|i am) (?:sorry|unable|not able|afraid)\b|\bi (?:cannot|can['’]t) (?:help|assist|provide|create|"
    r"generate|fulfil)|"
    r"^\W*(?:hm+|well)?\W*let me (?:see|think|try)\b|^\W*(?:i (?:understand|see)|got it|understood|noted)\W*$|"
    r"^\W*thank(?:s| you)\b|\byou (?:can|may|could) solve (?:this|it)\b|"
    r"\bas an ai\b|\bi (?:apologi[sz]e|need more (?:information|context|details))\b|"
    r"\b(?:can|could) you (?:please )?(?:clarify|specify|share|provide (?:me|more))\b|"
    r"\bnumbered list\b|\b(?:your|the) (?:students?|learners?|pupils)\b[^.\n]{0,40}\b(?:help|practi[cs]e|learn)|"
    r"\bnecesitas? (?:más|ayuda)|\bespero que (?:est[oea]s?|te|le)\b|\bbuena suerte\b|\bavísame\b|"
    r"\bsi (?:quieres|necesitas|deseas) más\b|"
    r"\b(?:quieres|te gustaría|deseas) (?:más|otr[oa]s?|que)\b|\b(?:estos|más) (?:problemas|ejercicios)\b|"
    r"\bno dudes en\b|"
    r"\bn['’]hésitez pas\b|\bj['’]espère que\b|\bbonne chance\b|\b(?:souhaitez|voulez)-vous (?:d['’]autres|"
    r"plus|que)\b|\bces (?:problèmes|exercices)\b|"
    r"\blass(?:en sie)? (?:es )?(?:mich|uns) wissen\b|\bich hoffe\b|\bviel (?:erfolg|glück|spaß)\b|\bm(?:ö|"
    r"oe)chten sie (?:weitere|mehr|noch)\b|\bdiese aufgaben\b|"
    r"\bespero que (?:isso|estes)\b|\bme avise\b|\bboa sorte\b|\b(?:estes|mais) problemas\b|\bfammi sapere\b|"
    r"\bspero che\b|\bbuona fortuna\b|\bquesti problemi\b|"
    r"希望(?:这些|这道|这个|此题|本题|以上|能|对你|對你)|(?:这些|以上)(?:题目|问题|都)|如果(?:你|您)?(?:还)?需要|祝(?:你|您)|更多(?:题目|问题)|"
    r"お役に立|お知らせください|必要であれば|これらの問題|도움이 되|알려 ?주세요|더 필요|"
    r"надеюсь|дайте знать|удачи|эти задачи|آمل أن|أتمنى|حظا|"
    r"هل تريد المزيد",
    re.IGNORECASE,
)


_PREFACE = re.compile(
    rf"^\W{{0,6}}(?:(?:sure|certainly|absolutely|of course|okay|ok|alright|great|here(?:['’]s| is| are| you go)?|"
    rf"claro|aquí|por supuesto|voici|bien sûr|hier (?:ist|sind)|natürlich|aqui|ecco|certo|вот|конечно)\b|"
    rf"好的|当然|以下|下面|はい|물론|다음은|بالطبع|إليك)[^?？\n]*[:：!.。]?$|"
    rf"^[^?？\n]{{0,120}}\b(?:{PROBLEM_WORDS}|list|examples?)\b[^?？\n]{{0,80}}[:：]$|^[^?？\n]{{0,60}}(?:题目|问题|問題|"
    rf"문제)[^?？\n]{{0,30}}[:：]$",
    re.IGNORECASE,
)


def is_preface(text: str) -> bool:
    """Whether a text only announces problems: "Here are some more problems:"."""
    text = text.strip(" \t\n*_#>`-")
    return len(text) < 400 and all(_PREFACE.search(line.strip(" *_#")) for line in text.splitlines() if line.strip())


_TITLE = re.compile(
    r"[A-Z0-9][^\s]*(?:[ \t]+(?:[A-Z0-9(&][^\s]*|a|an|and|at|by|de|for|from|in|of|on|or|the|to|vs\.?|with)){0,7}"
)


def is_title(line: str) -> bool:
    """Whether a line could be the title of a problem: "The Bakery"."""
    line = line.strip(" \t*_")
    if not line or line[-1] in ".?!:;,。？！：；，" or any(mark in line for mark in "$\\=_"):
        return False
    return _TITLE.fullmatch(line) is not None if line[0].isascii() else len(line) <= 10 and " " not in line


def is_heading(text: str) -> bool:
    """Whether a text is one line that is set as a heading: "## Easy", "**Geometry**"."""
    text = text.strip()
    return "\n" not in text and (
        re.fullmatch(r"#{1,6}[ \t][^\n]{1,80}|(\*\*|__)[^*_\n]{1,80}\1:?", text) is not None or is_title(text)
    )


def is_remark(text: str) -> bool:
    """Whether a sentence speaks about the list of problems or to its reader."""
    return _REMARK.search(text) is not None


def opens_answer(text: str) -> bool:
    """Whether a text begins with an answer, a solution or a hint: "Answer: 7"."""
    return ANSWER.match(text.lstrip()) is not None
