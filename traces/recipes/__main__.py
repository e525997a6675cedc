"""`python -m traces.recipes NAME` remakes a shipped trace; the options run single stages."""

import argparse
from pathlib import Path

STAGES = ("corpus", "train", "record", "predictors", "quality", "write")
# Where the corpus' own vocabulary would make the weights too large to ship.
VOCABULARIES = {"reference-8x16": 4096}


def main() -> None:
    """Run the asked stages in order; every stage but `corpus` is for one trace."""
    parser = argparse.ArgumentParser(prog="python -m traces.recipes", description=__doc__)
    parser.add_argument("name", choices=("reference-16x64", "reference-48x128", "reference-8x16"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--work", type=Path, default=Path("build/recipes"), help="where downloads and stages are kept")
    parser.add_argument("--corpus", type=Path, help="a built corpus (default: WORK/corpus)")
    parser.add_argument("--out", type=Path, default=Path("traces"), help="where traces and models/ go")
    parser.add_argument("--seconds", type=float, help="wall clock of training (default: the shape's own)")
    parser.add_argument("--steps", type=int, help="stop training after so many steps, if they come first")
    parser.add_argument("--quality-tokens", type=int, default=8_192, help="held-out tokens that quality is measured on")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    vocabulary = VOCABULARIES.get(arguments.name)
    whole_corpus = arguments.work / "corpus"
    corpus_folder = arguments.corpus or (arguments.work / f"corpus-{vocabulary}" if vocabulary else whole_corpus)
    folder = arguments.work / arguments.name

    from traces.recipes import corpus

    if "corpus" in arguments.stages and not (corpus_folder / "corpus.json").exists():
        if not (whole_corpus / "corpus.json").exists():
            corpus.build(whole_corpus, arguments.work / "downloads")
        if vocabulary:
            from traces.recipes.smaller_vocabulary import shrink

            shrink(whole_corpus, corpus_folder, vocabulary)
    if {"train", "record", "predictors", "quality"} & set(arguments.stages):
        # torch is loaded only for the stages that need it.
        from traces.recipes import stages
        from traces.recipes.shapes import SHAPES

        text = corpus.Corpus.load(corpus_folder)
        shape = SHAPES[arguments.name](text.description["vocabulary"])
        if "train" in arguments.stages:
            seconds = arguments.seconds or shape.seconds
            stages.train_stage(shape, text, folder, arguments.device, seconds, arguments.steps)
        if "record" in arguments.stages:
            stages.record_stage(shape, text, folder, arguments.device)
        if "predictors" in arguments.stages:
            from traces.recipes.predictors import predictors_stage

            predictors_stage(shape, text, folder, arguments.device)
        if "quality" in arguments.stages:
            from traces.recipes.quality import quality_stage

            quality_stage(shape, text, folder, arguments.device, arguments.quality_tokens)
    if "write" in arguments.stages:
        from traces.recipes.write import write_measurements, write_model, write_traces

        arguments.out.mkdir(parents=True, exist_ok=True)
        write_traces(arguments.name, corpus_folder, folder, arguments.out)
        write_measurements(arguments.name, folder, arguments.out)
        write_model(folder, corpus_folder, arguments.out / "models" / arguments.name)


if __name__ == "__main__":
    main()
