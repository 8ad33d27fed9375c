"""The signs of bad rows: what has one, and what looks like one and has none."""

from __future__ import annotations

import pytest

from training.data.quality import SIGNS, of_answer, score, signs
from training.data.row import Row, Turn

ASKED = "What is rain made of?"
LONG = "Rain is water that falls from clouds. It forms when vapour cools. It is measured in millimetres"

BAD = [
    ("garbled", ASKED, "Itâ€™s water, says AndrÃ© of the cafÃ©."),
    ("garbled", ASKED, "Water \ufffd\ufffd from clouds."),
    ("garbled", ASKED, "锟斤拷锟斤拷 water"),
    ("refusal", ASKED, "As an AI language model, I cannot say what rain is made of."),
    ("refusal", ASKED, "I'm sorry, but I can't assist with that request."),
    ("refusal", ASKED, "作为一个人工智能语言模型，我无法回答这个问题。"),
    ("refusal", ASKED, "Als KI kann ich das nicht sagen."),
    ("filler", ASKED, "Dear [Your Name], rain is water."),
    ("filler", ASKED, "Lorem ipsum dolor sit amet."),
    ("filler", ASKED, "TODO"),
    ("repetition", ASKED, "It is water from the clouds. " * 12),
    ("repetition", ASKED, "雨是水，从云里落下来。" * 10),
    ("repetition", ASKED, "Noooooooooooooooooooooooo"),
    ("echo", ASKED, "What is rain made of? Water."),
    ("no_words", ASKED, "..."),
    ("no_words", ASKED, "N/A"),
    ("no_words", ASKED, "？！"),
    ("cut_short", ASKED, LONG + " and in"),
    ("cut_short", ASKED, "Try this:\n```python\nprint('rain'"),
    ("too_brief", "Explain in detail how rain forms.", "Clouds."),
    ("too_brief", "请详细解释雨是怎么形成的。", "云。"),
    ("symbols", ASKED, "#$%^&*() @@!! ~~~ ^^^ $$$ water %%% &&& ((( )))"),
    ("markup", ASKED, "<p>Rain&nbsp;is water.</p> It falls."),
]
GOOD = [
    (ASKED, "Water."),
    (ASKED, LONG + "."),
    (ASKED, "positive"),
    (ASKED, "42"),
    (ASKED, "Hay de todo: TODOS los días llueve, todo bien."),  # Spanish
    (ASKED, "São Paulo fica no Brasil; NÃO chove. À côté, Â l'âge."),
    (ASKED, "雨是云里的水蒸气凝结成水滴后落下来的。它会滋润大地。请带伞"),
    (ASKED, "ฝนคือน้ำที่ตกลงมาจากเมฆ เมื่อไอน้ำเย็นตัวลงและรวมตัวกันเป็นหยดน้ำขนาดใหญ่ แล้วตกลงสู่พื้นดิน"),
    (ASKED, "वर्षा बादलों से गिरने वाला पानी है। यह वाष्प के ठंडा होने पर बनती है। इसे मापा जाता है।"),
    (ASKED, "Use a list:\n\n```html\n<p>Rain&nbsp;</p>\n```\n\nor `<br>`."),
    (ASKED, '{"a": [1, 2, 3], "b": {"c": "#$%^&*"}, "d": "----------"}'),
    (ASKED, "<svg><path d='M 1 1 L 2 2'/><path d='M 1 1 L 2 2'/></svg>"),
    (
        ASKED,
        "The parts are these. You need all of them. Check each before you begin:\n\n- water\n- clouds\n- a cold sky",
    ),
    (ASKED, "I wrote to them. They answered at once. It will be mended next week, so please wait for it.\n\nBest, Ana"),
    (ASKED, "There are many pages on rain. Some are good. The best one by far is https://example.com/rain/made-of"),
    (ASKED, "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\nThe table has two columns and two rows of figures."),
    ("Write one word.", "A word that fits here."),
    ("Translate: how are you today", "How is it going for you on this day?"),
    (ASKED, "for (let i = 1; i <= 5; i++) console.log(i);"),
    (ASKED, "Click [Add to cart], then press [Enter]. The AI model runs on a GPU."),
    (ASKED, "I am sorry that your parcel is late. I have sent a new one today."),
    (ASKED, "I can't recommend that shop, because they never answer their post."),
]


@pytest.mark.parametrize(("sign", "question", "answer"), BAD)
def test_a_bad_answer_has_its_sign(sign: str, question: str, answer: str) -> None:
    assert sign in set(of_answer(question, answer))


@pytest.mark.parametrize(("question", "answer"), GOOD)
def test_a_good_answer_has_none(question: str, answer: str) -> None:
    assert list(of_answer(question, answer)) == []


def test_the_score_is_one_less_what_each_sign_takes_off() -> None:
    row = Row(1, (Turn("user", ASKED), Turn("assistant", "As an AI language model&nbsp;I cannot.")))
    found = signs(row)
    assert [sign.name for sign in found] == ["refusal", "markup"]
    assert score(found) == 0.3
    assert score(()) == 1.0
    assert found[0].message == f"refusal (message 2): {SIGNS['refusal'][1]}"
    worst = "As an AI language model TODO: " + "<b>Ã©</b> water of clouds " * 30
    assert score(signs(Row(1, (Turn("user", ASKED), Turn("assistant", worst))))) == 0.0


def test_what_is_not_learned_or_bad_on_purpose_is_not_looked_at() -> None:
    bad = "As an AI language model, I cannot."
    asked, good = Turn("user", ASKED), Turn("assistant", "Water from clouds.")
    untrained = Turn("assistant", bad, trained=False)
    assert signs(Row(1, (asked, untrained, asked, good))) == ()
    assert signs(Row(1, (asked, good), rejected=Turn("assistant", bad))) == ()
    assert signs(Row(1, (asked, Turn("assistant", bad)), label=False)) == ()
    assert signs(Row(1, (asked, Turn("assistant", "", '[{"name": "f", "arguments": {}}]')))) == ()
    assert [sign.where for sign in signs(Row(1, (asked, Turn("assistant", bad), asked, good)))] == ["message 2"]
    assert [sign.name for sign in signs(Row(1, (Turn("user", "???"), good)))] == ["no_words"]


def test_a_long_text_costs_no_more_than_a_bounded_one() -> None:
    for text in ("a" * 1_000_000, "<" * 1_000_000, "sorry " * 200_000, "[insert " * 200_000, "as an ai " * 100_000):
        list(of_answer(text, text))
