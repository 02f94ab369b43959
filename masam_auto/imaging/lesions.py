"""Lesions as objects: how many of the reference's are found, and how many are made up."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from masam_auto.imaging.components import number_components

# Metrics Reloaded (Maier-Hein et al., Nature Methods 2024) names 0.1 for objects whose outline is uncertain.
MATCHING_IOU = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionCounts:
    """Lesions found (`tp`), made up (`fp`) and missed (`fn`)."""

    tp: int
    fp: int
    fn: int


def count_lesions(prediction: np.ndarray, reference: np.ndarray) -> LesionCounts:
    """Match lesions one to one: pairs whose IoU is at least `MATCHING_IOU`, as many as there can be.

    Lesions are connected components, corners included. A predicted lesion that covers two of the reference's finds one
    of them at most.

    Args:
        prediction: (Z, Y, X) bool.
        reference: (Z, Y, X) bool.
    """
    predicted, sizes_pred = number_components(prediction)
    true, sizes_ref = number_components(reference)
    n_pred, n_ref = len(sizes_pred), len(sizes_ref)
    both = prediction & reference
    keys, shared = np.unique(predicted[both].astype(np.int64) * (n_ref + 1) + true[both], return_counts=True)
    rows, columns = np.divmod(keys, n_ref + 1)
    alike = shared >= MATCHING_IOU * (sizes_pred[rows - 1] + sizes_ref[columns - 1] - shared)
    graph = sparse.csr_array(
        (np.ones(int(alike.sum()), bool), (rows[alike], columns[alike])), shape=(n_pred + 1, n_ref + 1)
    )
    tp = int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))
    return LesionCounts(tp=tp, fp=n_pred - tp, fn=n_ref - tp)
