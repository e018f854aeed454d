"""Command line: python main.py {prepare,fit,validate,test,predict,sweep,tables,figures,report} ..."""

from plif_lightning.allocator import tune_allocator

if __name__ == "__main__":
    tune_allocator()  # before PyTorch allocates anything
    from plif_lightning.commands import main

    main()
