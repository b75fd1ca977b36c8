from sb3_reinforce.about import main

if __name__ == "__main__":
    main()
