"""Token labels for the images of a batch: taken from their file, with the map from each view to its cells."""

from collections.abc import Sequence

import numpy as np

from dlth.data.images.token_labels import TokenLabels
from dlth.data.joining.join import Join
from dlth.data.loading.patches import Showing, source_view
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.view import View, compose, inverse
from dlth.tickets.store.label_store import LabelStore


def cells_of(join: Join[LabelStore], showings: Sequence[Showing], grid: Grid) -> TokenLabels:
    """The labels of what is shown, in views of `grid`; none for images that the file skipped."""
    store = join.store
    labels = store.labels_at(join.ticket_row[[showing.sample_id for showing in showings]])
    source = source_view(store.header.view, store.header.grid, showings)
    views = View.stack([showing.view for showing in showings])
    matrix = compose(np.broadcast_to(inverse(source.matrix), views.matrix.shape), views.matrix)
    return TokenLabels.of(labels.classes, labels.scores, matrix, grid)
