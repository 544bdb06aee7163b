"""The shortest program. Needs DEEPSEEK_API_KEY (and DEEPSEEK_BASE_URL for another address)."""

from deepseek_resilient import DeepSeek

with DeepSeek(timeout=60) as client:  # 60 s for each whole call, retries and waits included
    answer = client.chat.completions.create(
        model="deepseek-flash",
        messages=[{"role": "user", "content": "Say hello in one word."}],
    )
    print(answer.choices[0].message.content)

    stream = client.chat.completions.create(
        model="deepseek-flash",
        messages=[{"role": "user", "content": "Count to three."}],
        stream=True,
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
