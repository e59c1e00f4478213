"""What a child process learns from the environment."""

from __future__ import annotations

from captioner.core.subprocesses import environment

GIVEN = {
    "PATH": "/bin", "HOME": "/h", "LANG": "C", "LC_ALL": "C", "TMPDIR": "/t",
    "PYTHONPATH": "/p", "LD_LIBRARY_PATH": "/l", "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "0",
}  # fmt: skip
FETCHING = {
    "https_proxy": "http://p", "AWS_SECRET_ACCESS_KEY": "a", "SSL_CERT_FILE": "/c", "HF_TOKEN": "h",
}  # fmt: skip
SECRETS = {
    "MYAUTH": "1", "CAPTIONER_HEADER": "X: 2", "HTTP_BASIC": "3", "AWS_SESSION": "4",
    "DATABASE_URL": "5", "OPENAI_API_KEY": "6", "GITHUB_TOKEN": "7", "PYTHON_KEYRING_PASSWORD": "8",
    "SSH_AUTH_SOCK": "9", "CAPTIONER_EXTRA_BODY": "10",
}  # fmt: skip


def test_children_get_only_what_they_need(monkeypatch):
    """Those that decode get no proxies and no keys, those that send only the keys they send."""
    for name, value in {**GIVEN, **FETCHING, **SECRETS}.items():
        monkeypatch.setenv(name, value)
    decoding = environment()
    assert decoding.keys() >= GIVEN.keys()
    assert not decoding.keys() & {*FETCHING, *SECRETS}
    sending = environment(fetching=True, more={"MYAUTH"})
    assert sending.keys() >= {*GIVEN, *FETCHING, "MYAUTH"}
    assert not sending.keys() & (SECRETS.keys() - {"MYAUTH"})
