"""Re-IQA: how good a picture looks, without a reference.

Saha, Mishra and Bovik, "Re-IQA: Unsupervised Learning for Image Quality Assessment in the Wild", CVPR 2023,
arXiv:2304.00451.

score(paths)          scores of files, folders, globs
Scorer                the same, picture by picture; features too
fit_ridge, Regressor  a regressor of one's own, from features and ratings; fit_elastic_net likewise
cross_validate        SRCC and PLCC over splits that keep contents apart
pretrain, Recipe      momentum contrast on distorted pictures
ReIQA, with_content   the network; published files load by `saccade.load`
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "elastic": ["ElasticNet", "fit_elastic_net"],
        "encoder": ["Encoder"],
        "moco": ["pretrain"],
        "network": ["ReIQA", "with_content"],
        "protocol": ["Agreement", "cross_validate", "plcc", "srcc"],
        "recipe": ["Recipe"],
        "ridge": ["Ridge", "fit_ridge"],
        "scoring": ["Regressor", "Score", "Scorer", "score"],
    },
)
