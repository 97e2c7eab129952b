"""Output for people: pictures, HTML pages, and sheets for human judges.

Read `errors_page` with its template, which `lm.pages` renders, then `facets`, its filters and sort keys. `loss_curve`,
`learning_curve` and `pictures` draw with matplotlib; `judging` is a command of its own, with the page on which judges compare
texts.
"""
