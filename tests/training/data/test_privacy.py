"""Secrets and personal data: what is one, and what only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.privacy import is_card, is_iban, personal, secrets

KEY = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("-----BEGIN RSA PRIVATE KEY-----\nMII", "a private key"),
        ("-----BEGIN PRIVATE KEY-----", "a private key"),
        (f"use sk-proj-{KEY}", "an OpenAI key"),
        (f"sk-ant-api03-{KEY}", "an Anthropic key"),
        ("AKIAIOSFODNN7EXAMPLE", "an AWS access key"),
        (f"ghp_{KEY[:36]}", "a GitHub token"),
        (f"glpat-{KEY[:20]}", "a GitLab token"),
        ("xoxb-1234567890-abcdef", "a Slack token"),
        (f"AIza{KEY[:35]}", "a Google API key"),
        (f"hf_{KEY[:34]}", "a Hugging Face token"),
        (f"sk_live_{KEY[:24]}", "a Stripe key"),
        (f"Authorization: Bearer {KEY}", "a bearer token"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4", "a JSON web token"),
        ("postgres://joe:hunter2@db.internal/x", "a password in a URL"),
        ("password = 'x7Kd9!pQ2zLm'", "a password or key behind its name"),
        ('"api_key": "9f8e7d6c5b4a39281706"', "a password or key behind its name"),
    ],
)
def test_secrets_are_named(text: str, name: str) -> None:
    assert secrets(text) == [name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Reset your password: open Settings.",
        "password = 'your_password_here'",
        "api_key = os.environ['API_KEY']",
        "the bearer of this letter is my friend",
        "the task-force and the disk-based approach",
        "https://example.com/a:b@c",
        "ask-me-anything-about-our-risk-and-return-policy",
    ],
)
def test_words_about_secrets_are_none(text: str) -> None:
    assert secrets(text) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("write to joe.doe+x@corp.co.uk.", "an e-mail address"),
        ("联系joe@corp.cn谢谢", "an e-mail address"),
        ("call +49 30 1234567", "a phone number"),
        ("(415) 555-2671", "a phone number"),
        ("电话13912345678。", "a phone number"),
        ("4111 1111 1111 1111", "a card number"),
        ("5500-0000-0000-0004", "a card number"),
        ("DE89 3704 0044 0532 0130 00", "an IBAN"),
        ("GB82WEST12345698765432", "an IBAN"),
        ("11010519491231002X", "a Chinese identity number"),
        ("123-45-6789", "a US social security number"),
    ],
)
def test_personal_data_are_named(text: str, name: str) -> None:
    assert name in personal(text)


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com",
        "order 4111 1111 1111 1112",
        "0000000000000000",
        "In 2024 we sold 1,234,567.89 units",
        "version 1.2.3.4 of 2024-01-01 12:30:00",
        "3.14159265358979",
        "DE89 3704 0044 0532 0130 01",
        "@app.route and a@b",
        "x = [100, 200, 300]",
    ],
)
def test_figures_are_no_personal_data(text: str) -> None:
    assert personal(text) == []


@given(st.text("0123456789", min_size=12, max_size=18), st.sampled_from("23456"))
def test_of_ten_last_digits_one_makes_a_card(digits: str, first: str) -> None:
    made = [first + digits[1:] + last for last in "0123456789"]
    assert sum(map(is_card, made)) == 1 or len(set(made[0][:-1])) == 1


@given(st.text(max_size=60))
def test_any_text_is_taken(text: str) -> None:
    assert all(isinstance(name, str) for name in secrets(text) + personal(text))
    assert not is_iban(text[:10])
