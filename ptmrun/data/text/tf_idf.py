"""TF-IDF of words, for the classical baselines."""

import re
from typing import Any

STRENGTH = 10.0  # of logistic regression on TF-IDF


def tf_idf(texts: list[str], **options: Any) -> Any:
    """Scikit-learn's TF-IDF, fitted to these texts: of words of two characters and more, or where there are none, as in texts
    of emoji alone, of what stands between spaces."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = r"(?u)\b\w\w+\b"
    return TfidfVectorizer(token_pattern=words if any(re.search(words, t) for t in texts) else r"\S+", **options).fit(texts)
