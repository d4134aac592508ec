"""The kinds of a position in a row: what data writes into a batch's `kind`, and what the model reads there.

In: nothing. Out: three plain integers, so that data and model agree without knowing of each other.

    kind = [IMAGE] * num_image_tokens + [TEXT] * num_text_tokens + [PAD] * num_pads

One row of two samples, each an image with texts behind it (2 image tokens i, texts a, b and c, pads _):

    tokens     i i a a a b b i i c c c _ _
    kind       1 1 2 2 2 2 2 1 1 2 2 2 0 0      what stands here: IMAGE, TEXT or PAD
    group      0 0 0 0 0 0 0 1 1 1 1 1 - -      the sample: different groups never see each other (- is -1)
    segment    0 0 1 1 1 2 2 3 3 4 4 4 - -      an image or a text: which of them it sees is in `sees`
    position   0 1 2 3 4 2 3 0 1 2 3 4 0 0      logical: each text goes on from its own prefix

`PAD` is seen by no other position; the tokens of an `IMAGE` see all of their image; `TEXT` is causal. Who sees whom is
decided in one place, `may_attend` of model/sequence.py.
"""

PAD, IMAGE, TEXT = 0, 1, 2
