"""How close the estimate of tokens comes to DeepSeek's tokenizer, and what it costs.

    pip install '.[tokenizer]' && python benchmarks/tokens.py

The texts are this project's own files, and short samples of other scripts repeated; `len / 4` is what many use.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from deepseek_resilient.core.tokens import estimate
from deepseek_resilient.tokenizer import EXACT_UP_TO, token_counter

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = {
    "Chinese": "当服务繁忙时，客户端应该等待一段随机的时间，然后再重试，而不是立即重新发送请求。",
    "Russian": "Когда сервис перегружен, клиент должен подождать случайное время и потом повторить.",
    "Japanese": "サービスが混雑しているときは、クライアントはランダムな時間だけ待ってから再試行してください。",
    "Arabic": "عندما تكون الخدمة مشغولة يجب على العميل أن ينتظر وقتا عشوائيا قبل إعادة المحاولة.",
    "Thai": "เมื่อบริการไม่ว่าง ไคลเอนต์ควรรอเป็นเวลาสุ่มก่อนที่จะลองใหม่อีกครั้ง",
    "emoji": "😀🚀🎉🔥💡🙈🧪📈",
}


def texts() -> dict[str, str]:
    """Each short enough to be counted exactly."""
    found = {
        "English prose": (ROOT / "docs" / "architecture.md").read_text(),
        "Markdown tables": (ROOT / "docs" / "defaults.md").read_text(),
        "Python": (ROOT / "src" / "deepseek_resilient" / "core" / "routing.py").read_text(),
        **{name: sample * 40 for name, sample in SAMPLES.items()},
    }
    return {name: text[:EXACT_UP_TO] for name, text in found.items()}


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    count = token_counter()
    if count is estimate:
        raise SystemExit("the tokenizer is not installed: pip install '.[tokenizer]'")
    print(f"{'text':<18}{'tokens':>8}{'estimate':>10}{'ratio':>7}{'len / 4':>9}")
    for name, text in texts().items():
        exact, estimated = count(text), estimate(text)
        print(f"{name:<18}{exact:>8}{estimated:>10}{estimated / exact:>7.2f}{len(text) / 4 / exact:>9.2f}")
    words = "The quick brown fox jumps over 12 lazy dogs. " * 11_111
    began = time.perf_counter()
    estimate(words)
    print(f"100,000 words are estimated in {(time.perf_counter() - began) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
