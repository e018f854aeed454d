"""Command line: python main.py {prepare,fit,validate,test,predict} --config configs/X.yaml ..."""

from plif_lightning.allocator import tune_allocator

if __name__ == "__main__":
    tune_allocator()  # before PyTorch allocates anything
    from plif_lightning.cli import main

    main()
