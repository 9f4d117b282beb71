"""TF-IDF, for the classical baselines."""

import re
from typing import Any

STRENGTH = 10.0  # of logistic regression on TF-IDF


def words(texts: list[str], **options: Any) -> Any:
    """Scikit-learn's TF-IDF, fitted to these texts: of words of two characters and more, or where there are none, as in texts
    of emoji alone, of what stands between spaces."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    pattern = r"(?u)\b\w\w+\b"
    return TfidfVectorizer(token_pattern=pattern if any(re.search(pattern, t) for t in texts) else r"\S+", **options).fit(texts)


def characters(texts: list[str]) -> Any:
    """The same of two to five characters inside words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit(texts)
